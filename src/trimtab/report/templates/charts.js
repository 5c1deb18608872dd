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

// Makes a drawing fit a narrower screen: fewer ticks, and names that leave room for the marks.
function fit(spec, room, natural) {
  const shrunk = (room - 70) / (natural - 70); // 70: names beside a map of steps
  for (const side of ["width", "height"]) {
    if (typeof spec[side] === "object") spec[side] = { step: spec[side].step * shrunk };
  }
  if (typeof spec.width === "number") spec.width = Math.min(spec.width, room);
  const most = Math.round(0.45 * room);
  (function each(part) {
    if (part === null || typeof part !== "object") return;
    if (part.labelLimit) part.labelLimit = Math.min(part.labelLimit, most);
    if (part.tickCount) part.tickCount = Math.ceil(part.tickCount / 2);
    if (part.labelOverlap === false) part.labelOverlap = true;
    for (const [name, inner] of Object.entries(part)) if (name !== "values") each(inner);
  })(spec);
  spec.config.axis.labelOverlap = true;
  spec.config.axis.titleLimit = room;
}

const options = {
  mode: "vega-lite",
  renderer: "svg",
  actions: false,
  ast: true, // expressions are interpreted: the page's policy allows no eval
  tooltip: { theme: "report", disableDefaultStyle: true },
};

// Draws a chart from the specification beside it, as SVG, so that CSS colours it.
async function draw(chart) {
  const spec = JSON.parse(chart.querySelector("script").textContent);
  unpack(spec);
  const room = chart.clientWidth;
  chart.natural ??= typeof spec.width === "number" ? spec.width : 0; // 0: as many steps as it has
  if (room && room < chart.natural) fit(spec, room, chart.natural);
  const canvas = chart.querySelector(".canvas") || chart.appendChild(document.createElement("div"));
  canvas.className = "canvas";
  try {
    if (chart.view) chart.view.finalize();
    chart.view = (await vegaEmbed(canvas, spec, options)).view;
    chart.dataset.state = "drawn";
    if (!chart.natural) {
      chart.natural = Number(canvas.querySelector("svg").getAttribute("width"));
      if (room < chart.natural) await draw(chart);
    }
  } catch (error) {
    canvas.textContent = `This chart could not be drawn (${error.message}); the table has its numbers.`;
    chart.dataset.state = "failed";
  }
  chart.room = room;
}

const charts = [...document.querySelectorAll(".chart")];
(async () => {
  for (const chart of charts) await draw(chart);
  document.documentElement.dataset.charts = "done";
})();

// A screen that is turned, or a window that is drawn out, has the charts drawn again.
let resized;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(async () => {
    for (const chart of charts) {
      const [was, now] = [chart.room, chart.clientWidth].map((room) => Math.min(room, chart.natural));
      if (was !== now) await draw(chart);
    }
    document.documentElement.dataset.width = innerWidth;
  }, 200);
});

// What is wider than the screen says so: a table that is cut looks like a table that ends.
const watcher = new ResizeObserver((seen) => {
  for (const { target } of seen) {
    const region = target.closest(".scroll");
    region.classList.toggle("wide", region.scrollWidth > region.clientWidth + 1);
  }
});
for (const region of document.querySelectorAll(".scroll")) {
  watcher.observe(region);
  watcher.observe(region.querySelector("table"));
}

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
