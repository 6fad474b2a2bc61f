// The page of the study. Everything stays in the browser until the rater saves the file with the answers.
"use strict";

const PATIENCE = 60; // seconds until a video counts as one that does not arrive
const study = window.STUDY;
const byId = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search).get("rater");
const key = `study:${study.id}` + (asked ? `:${asked}` : ""); // raters may share a browser, each by an address of their own

// A small generator (mulberry32), so that order and sides are a function of the study's seed and the rater.
function generator(text) {
  let state = 2166136261;
  for (const character of text) state = Math.imul(state ^ character.codePointAt(0), 16777619);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let value = Math.imul(state ^ (state >>> 15), 1 | state);
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
    return ((value ^ (value >>> 14)) >>> 0) / 4294967296;
  };
}

function loadState() {
  try {
    const saved = JSON.parse(localStorage.getItem(key));
    if (saved && Array.isArray(saved.answers)) return saved;
  } catch { /* what cannot be read is begun again */ }
  const random = crypto.getRandomValues(new Uint32Array(2));
  return { rater: asked || [...random].map((part) => part.toString(36)).join(""), answers: [] };
}

function saveState() {
  try {
    localStorage.setItem(key, JSON.stringify(state));
  } catch {
    byId("unsaved").hidden = false; // blocked, as in a frame without cookies, or full: the answers are in this page alone
  }
}

function plan(rater) {
  const random = generator(`${study.seed}:${study.id}:${rater}`);
  const order = study.trials.map((trial) => ({ trial, place: random() })).sort((a, b) => a.place - b.place);
  return order.map(({ trial }) => ({ trial, firstLeft: random() < 0.5 }));
}

const state = loadState();
const trials = plan(state.rater);
let shownAt = 0;
let problem = ""; // why the pair cannot be judged; empty of one that can

function show(section) {
  for (const name of ["start", "trial", "end"]) byId(name).hidden = name !== section;
}

function sources(step) {
  const { first, second } = step.trial;
  return step.firstLeft ? [first, second] : [second, first];
}

async function shown(picture, source) {
  picture.src = source;
  await picture.decode().catch(() => { throw new Error(`The picture ${source} cannot be shown`); });
}

function ready(video, source) {
  return new Promise((resolve, reject) => {
    video.oncanplaythrough = resolve;
    video.onerror = () => reject(new Error(`The video ${source} cannot be played`));
    setTimeout(() => reject(new Error(`The video ${source} has not arrived within ${PATIENCE} seconds`)), 1000 * PATIENCE);
    video.src = source;
    video.load();
  });
}

function preload(step) {
  if (!step) return;
  for (const source of sources(step)) {
    const ahead = document.createElement("video");
    ahead.preload = "auto";
    ahead.src = source;
  }
}

function enable(enabled) {
  for (const button of byId("choices").children) button.disabled = !enabled;
}

async function next() {
  tell("");
  const index = state.answers.length;
  if (index >= trials.length) {
    show("end");
    return;
  }
  show("trial");
  enable(false);
  const step = trials[index];
  byId("question").textContent = study.question;
  byId("progress").textContent = `${index + 1} of ${trials.length}`;
  const videos = [byId("left"), byId("right")];
  try {
    const loaded = videos.map((video, side) => ready(video, sources(step)[side]));
    await Promise.all([shown(byId("picture"), step.trial.picture), ...loaded]);
    for (const video of videos) video.currentTime = 0;
    await Promise.all(videos.map((video) => video.play()));
  } catch (error) {
    tell(error.message);
    return;
  }
  shownAt = performance.now();
  setTimeout(() => {
    if (state.answers.length === index) enable(true);
  }, 1000 * study.min_seconds);
  preload(trials[index + 1]);
}

function tell(reason) {
  problem = reason;
  byId("reason").textContent = `${reason}.`;
  byId("problem").hidden = !reason;
}

function answer(score) {
  const step = trials[state.answers.length];
  const enabled = !byId("choices").children[0].disabled;
  if (!step || !enabled || byId("trial").hidden) return;
  keep(step, {
    score: step.firstLeft ? score : -score || 0, // for the first clip, whichever side it was on
    left: step.firstLeft ? "first" : "second",
    seconds: Math.round(performance.now() - shownAt) / 1000,
  });
}

// A pair that cannot be judged has no score: the analysis leaves it out, and counts it.
function skip() {
  if (problem) keep(trials[state.answers.length], { score: null, seconds: 0, problem });
}

function keep(step, row) {
  state.answers.push({ trial: step.trial.id, ...row });
  saveState();
  next();
}

function download() {
  const result = { study: study.id, rater: state.rater, trials: trials.length, answers: state.answers };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(result, null, 1)], { type: "application/json" }));
  link.download = `answers-${state.rater}.json`;
  link.click(); // its address stays valid: some browsers read it only after this
}

if (asked) byId("who").textContent = `the name ${asked}, which is in the link to this page`;
byId("count").textContent = trials.length;
byId("minutes").textContent = Math.max(1, Math.round((trials.length * 20) / 60));
byId("consent").addEventListener("change", (event) => { byId("begin").disabled = !event.target.checked; });
byId("begin").addEventListener("click", () => { saveState(); next(); });
byId("save").addEventListener("click", download);
byId("again").addEventListener("click", next);
byId("skip").addEventListener("click", skip);
for (const button of byId("choices").children) {
  button.addEventListener("click", () => answer(Number(button.dataset.score)));
}
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const place = ["1", "2", "3", "4", "5"].indexOf(event.key);
  if (place >= 0) answer(2 - place);
});
if (state.answers.length) next();
