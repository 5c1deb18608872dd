"use strict";
// Draws every chart from the specification beside it, as SVG, so that CSS colours it.
(async () => {
  const options = {
    mode: "vega-lite",
    renderer: "svg",
    actions: false,
    ast: true, // expressions are interpreted: the page's policy allows no eval
    tooltip: { theme: "report", disableDefaultStyle: true },
  };
  for (const chart of document.querySelectorAll(".chart")) {
    const spec = JSON.parse(chart.querySelector("script").textContent);
    const canvas = document.createElement("div");
    chart.append(canvas);
    try {
      await vegaEmbed(canvas, spec, options);
      chart.dataset.state = "drawn";
    } catch (error) {
      canvas.textContent = `This chart could not be drawn (${error.message}); the table has its numbers.`;
      chart.dataset.state = "failed";
    }
  }
  document.documentElement.dataset.charts = "done";
})();

// Paper shows the tables that fit on it, and the reader's choice comes back afterwards.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not(.long):not([open])")];
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
