// null takes a stored decision back. Decisions stay in the browser (localStorage, by run) until they are saved as review.jsonl.
"use strict";

const key = `contextanyone-review-${document.body.dataset.run}`;
const articles = [...document.querySelectorAll("article")].filter((article) => article.querySelector("button"));

function stored() {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? {};
  } catch {
    return {};
  }
}

function show() {
  const review = stored();
  for (const article of articles) {
    const keep = review[article.dataset.id];
    const state = keep === undefined ? article.dataset.stored : keep === null ? "" : keep ? "keep" : "drop";
    article.dataset.state = state;
    for (const name of ["keep", "drop"]) {
      article.querySelector(`button.${name}`).setAttribute("aria-pressed", String(state === name));
    }
  }
  const count = Object.values(review).filter((keep) => keep !== null).length;
  document.getElementById("count").textContent = `${count} decided in this browser`;
}

function decide(article, keep) {
  const review = stored();
  const pressed = article.dataset.state === (keep ? "keep" : "drop");
  review[article.dataset.id] = pressed ? null : keep; // pressed again: taken back
  localStorage.setItem(key, JSON.stringify(review));
  show();
}

function save() {
  const lines = Object.entries(stored())
    .map(([id, keep]) => `${JSON.stringify({ id, keep })}\n`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  link.download = "review.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

for (const article of articles) {
  article.querySelector("button.keep").addEventListener("click", () => decide(article, true));
  article.querySelector("button.drop").addEventListener("click", () => decide(article, false));
}
document.getElementById("save").addEventListener("click", save);
window.addEventListener("storage", show);
show();
