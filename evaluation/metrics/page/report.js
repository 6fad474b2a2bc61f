"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c564b"];
const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["none", "8 4", "2 3", "10 3 2 3"]; // with which the colours come again
const color = (system) => COLORS[data.systems.indexOf(system) % COLORS.length];
const dash = (system) => DASHES[Math.floor(data.systems.indexOf(system) / COLORS.length) % DASHES.length];

function add(parent, tag, text) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function draw(parent, tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function range(values) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const room = (high - low) * 0.05 || 0.05;
  return [low - room, high + room];
}

// A single reference has no interval.
const interval = (found, digits) => (found.low === null ? "" : `${found.low.toFixed(digits)} to ${found.high.toFixed(digits)}`);
const counted = (found) => (found.items === data.items.length ? "" : `n = ${found.items}`);

let sorted = { metric: null, down: true };

function showTable() {
  const head = document.querySelector("#table thead");
  const body = document.querySelector("#table tbody");
  head.replaceChildren();
  body.replaceChildren();
  const row = add(head, "tr");
  add(row, "th", "system");
  for (const metric of data.metrics) {
    const cell = add(row, "th");
    const active = sorted.metric === metric.name;
    if (active) cell.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
    const mark = active ? (sorted.down ? " ▼" : " ▲") : "";
    const button = add(cell, "button", metric.name + mark);
    button.title = `${metric.meaning}${metric.better ? `; ${metric.better} is better` : ""}`;
    button.addEventListener("click", () => {
      sorted = { metric: metric.name, down: active ? !sorted.down : metric.better !== "lower" };
      showTable();
    });
  }
  const mean = (system) => data.summaries[sorted.metric]?.[system]?.mean;
  const order = [...data.systems];
  if (sorted.metric !== null) {
    order.sort((one, other) => {
      const [a, b] = [mean(one), mean(other)];
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return sorted.down ? b - a : a - b;
    });
  }
  for (const system of order) {
    const line = add(body, "tr");
    if (data.bounds.includes(system)) line.className = "bound";
    add(line, "td", system);
    for (const metric of data.metrics) {
      const found = data.summaries[metric.name]?.[system];
      const cell = add(line, "td", found ? found.mean.toFixed(3) : "-");
      if (found) add(cell, "small", [interval(found, 3), counted(found)].filter(Boolean).join(", "));
    }
  }
}

function showComparisons() {
  const row = add(document.querySelector("#comparisons thead"), "tr");
  for (const name of ["metric", "first", "second", "first - second", "95 %", "p", "items", "better"]) add(row, "th", name);
  const body = document.querySelector("#comparisons tbody");
  for (const found of data.comparisons) {
    const line = add(body, "tr");
    const cells = [found.metric, found.first, found.second, found.difference.toFixed(4), interval(found, 4) || "-"];
    for (const text of [...cells, found.p.toFixed(4), found.items, found.better]) add(line, "td", String(text));
  }
}

function showDrift() {
  const shown = data.systems.filter((system) => data.curves[system]?.length);
  const box = document.getElementById("drift");
  if (!shown.length) return void add(box, "p", "Not computed: no DINO was given.");
  const points = shown.flatMap((system) => data.curves[system]);
  const [left, right] = range(points.map((point) => point[0]));
  const [low, high] = range(points.map((point) => point[1]));
  const x = (second) => 60 + ((second - left) / (right - left)) * 540;
  const y = (value) => 260 - ((value - low) / (high - low)) * 240;
  const height = Math.max(300, 40 + 20 * shown.length); // of the names, which may be many
  const svg = draw(box, "svg", { viewBox: `0 0 860 ${height}`, width: 860, role: "img", "aria-label": "drift" });
  draw(svg, "path", { d: "M60 20V260H600", stroke: "#999", fill: "none" });
  for (const value of [low, high]) draw(svg, "text", { x: 6, y: y(value) + 4 }, value.toFixed(3));
  draw(svg, "text", { x: 300, y: 290 }, `seconds (${left.toFixed(1)} to ${right.toFixed(1)})`);
  shown.forEach((system, index) => {
    const path = data.curves[system].map(([second, value]) => `${x(second).toFixed(1)},${y(value).toFixed(1)}`);
    const line = { stroke: color(system), "stroke-width": 2, "stroke-dasharray": dash(system), fill: "none" };
    draw(svg, "polyline", { points: path.join(" "), ...line });
    draw(svg, "path", { d: `M610 ${28 + 20 * index}H634`, ...line });
    draw(svg, "text", { x: 640, y: 33 + 20 * index }, system);
  });
}

function showDistribution() {
  const name = document.getElementById("metric").value;
  const box = document.getElementById("distribution");
  box.replaceChildren();
  document.getElementById("meaning").textContent = data.metrics.find((metric) => metric.name === name)?.meaning ?? "";
  const of = data.numbers[name] ?? {};
  const shown = data.systems.filter((system) => Object.keys(of[system] ?? {}).length);
  const [low, high] = range(shown.flatMap((system) => Object.values(of[system])));
  const svg = draw(box, "svg", { viewBox: `0 0 860 ${40 * shown.length + 40}`, width: 860, role: "img", "aria-label": name });
  const x = (value) => 220 + ((value - low) / (high - low)) * 620;
  shown.forEach((system, index) => {
    const y = 20 + 40 * index;
    draw(svg, "text", { x: 0, y: y + 4 }, system);
    draw(svg, "path", { d: `M220 ${y}H840`, stroke: "#ddd" });
    for (const [item, value] of Object.entries(of[system])) {
      const dot = draw(svg, "circle", { cx: x(value), cy: y, r: 5, fill: color(system), "fill-opacity": 0.5 });
      draw(dot, "title", {}, `${item}: ${value.toFixed(4)}`);
    }
  });
  draw(svg, "text", { x: 220, y: 40 * shown.length + 20 }, low.toFixed(3));
  draw(svg, "text", { x: 800, y: 40 * shown.length + 20 }, high.toFixed(3));
}

function showClips() {
  const item = data.items.find((one) => one.id === document.getElementById("item").value);
  document.getElementById("prompt").textContent = item.prompt;
  const box = document.getElementById("players");
  box.replaceChildren();
  const reference = add(box, "figure");
  add(reference, "img").src = item.reference;
  reference.querySelector("img").alt = "reference";
  add(reference, "figcaption", "reference");
  for (const [system, source] of Object.entries(item.clips)) {
    const figure = add(box, "figure");
    if (source.endsWith("/")) {
      add(figure, "p", "a folder of pictures, which no player shows");
    } else if (/\.(gif|webp|a?png|avif)$/i.test(source)) {
      add(figure, "img").src = source; // an animation plays by itself
    } else {
      const video = add(figure, "video");
      Object.assign(video, { controls: true, loop: true, muted: true, preload: "metadata", src: source });
    }
    add(figure, "figcaption", system);
    for (const metric of data.metrics) {
      const value = data.numbers[metric.name]?.[system]?.[item.id];
      if (value !== undefined) add(figure, "p", `${metric.name} ${value.toFixed(3)}`);
    }
  }
}

function choices(select, names, show) {
  for (const name of names) add(select, "option", name).value = name;
  select.addEventListener("change", show);
  if (names.length) show();
}

for (const [name, value] of Object.entries(data.record)) add(document.getElementById("record"), "li", `${name}: ${value}`);
for (const note of data.notes) add(document.getElementById("notes"), "li", note);
showTable();
showComparisons();
showDrift();
const ofClips = data.metrics.map((metric) => metric.name).filter((name) => Object.keys(data.numbers[name]).length);
choices(document.getElementById("metric"), ofClips, showDistribution);
choices(document.getElementById("item"), data.items.map((item) => item.id), showClips);
