"use strict";
// Rows come without the names of their columns, which stand once beside them.
function unpack(part) {
  if (part === null || typeof part !== "object") return;
  if (Array.isArray(part.values) && Array.isArray(part.columns)) {
    const columns = part.columns;
    part.values = part.values.map((row) => Object.fromEntries(row.map((cell, at) => [columns[at], cell])));
    delete part.columns;
    return;
  }
  for (const inner of Object.values(part)) unpack(inner);
}

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
    unpack(spec);
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

// A long table shows the rows that have every word of its field; the total stays.
for (const field of document.querySelectorAll(".filter input")) {
  const rows = [...field.closest(".filter").nextElementSibling.querySelectorAll("tbody tr:not(.total)")];
  const told = field.closest(".filter").querySelector("output");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    told.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
  });
}

// Paper shows the tables that fit on it, and the reader's choice comes back afterwards.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not(.long):not([open])")];
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
