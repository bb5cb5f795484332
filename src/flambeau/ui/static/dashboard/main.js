/** The dashboard: /metrics is read every two seconds, and drawn. Its history is kept here, and gone with the tab. */

import { showStages } from "../stages.js";
import { fetchAllowed } from "../token.js";
import { Chart } from "./chart.js";
import { parse } from "./exposition.js";
import { asked, compare, perVersion, refusals } from "./figures.js";
import { plain, size, time } from "./units.js";

const EVERY = 2; // seconds
const SPAN = 300; // seconds of history that are shown, as soon as there are so many
const LEAST_SPAN = 60;
const SMOOTH = 10; // seconds over which quantiles and means are taken: two have too few requests

const line = (name, kind, key) => ({ name, kind, value: (figures) => figures[key] });
const chart = (id, lines, inWords, least) => new Chart(document.getElementById(id), lines, inWords, least);
const CHARTS = [
  chart("requests", [line("answered", "good", "answered"), line("refused", "minor", "refused"), line("failed", "bad", "failed")], plain),
  chart("latency", [line("p99", "major", "slowest"), line("p50", "second", "median")], time),
  chart("batches", [line("items in a batch", "major", "batch")], plain, 2),
  chart("queue", [line("items waiting", "major", "waiting")], plain, 2),
  chart("memory", [line("all workers", "major", "memory")], size, 1e8),
];
const TILES = {
  rate: ({ answered, refused, failed }) => plain(answered + refused + failed),
  p50: ({ median }) => known(median, time),
  p99: ({ slowest }) => known(slowest, time),
  waiting: ({ waiting }) => known(waiting, plain),
  crew: ({ workers }) => known(workers, plain),
  restarts: ({ restarts }) => known(restarts, plain),
  held: ({ memory }) => known(memory, size),
};

const choice = document.getElementById("model");
const state = document.getElementById("state");
/** @type {import("./figures.js").Snapshot[]} the readings of the last `SPAN` seconds, oldest first */
let snapshots = [];
/** What was made of them for the model that is chosen. */
let history = [];
let failures = 0;

async function read() {
  try {
    const response = await fetchAllowed("metrics");
    if (!response.ok) throw new Error(`The server answered ${response.status} for its metrics.`);
    take({ at: performance.now() / 1000, samples: parse(await response.text()) });
    failures = 0;
    say("live", "Live");
  } catch (error) {
    failures += 1;
    say("lost", error instanceof TypeError ? "The server cannot be reached. What is shown is old." : error.message);
  }
  setTimeout(read, 1000 * EVERY * Math.min(failures || 1, 5));
}

function take(snapshot) {
  const recent = ({ at }) => at > snapshot.at - SPAN - SMOOTH;
  snapshots = [...snapshots.filter(recent), snapshot];
  document.getElementById("first").hidden = asked(snapshot);
  if (snapshots.length > 1) history = [...history.filter(recent), figuresAt(snapshots.length - 1)];
  show();
}

function takeOther() {
  history = snapshots.slice(1).map((_, index) => figuresAt(index + 1));
  show();
}

/** Rates since the reading before; what needs many requests since some seconds before. */
function figuresAt(index) {
  const later = snapshots[index];
  const start = snapshots.findIndex(({ at }) => at >= later.at - SMOOTH - EVERY / 2);
  const { answered, refused, failed } = compare(snapshots[index - 1], later, model());
  return { ...compare(snapshots[Math.min(start, index - 1)], later, model()), answered, refused, failed };
}

function show() {
  showModels(perVersion(snapshots.at(-1)));
  const latest = history.at(-1);
  if (!latest) return;
  const span = Math.min(Math.max(latest.at - history[0].at, LEAST_SPAN), SPAN);
  for (const each of CHARTS) each.draw(history, span);
  document.getElementById("memory").hidden = latest.memory === null;
  for (const [id, word] of Object.entries(TILES)) document.getElementById(id).textContent = word(latest);
  document.getElementById("timed").hidden = latest.timed === "total";
  document.getElementById("stages").hidden = !latest.spent.size;
  showStages(document.getElementById("stages"), latest.spent);
  showRefusals(refusals(snapshots.at(-1), model()));
}

function showRefusals(counts) {
  const text = counts.map(([code, count]) => `${code} ${plain(count)}`).join(", ");
  document.getElementById("refusals").textContent = text ? `Refused before inference since the start: ${text}` : "";
}

function showModels(models) {
  const rows = models.map(({ title, ready, states, nodes, restarts, memory }) => {
    const cells = [
      title,
      ready ? "ready" : "not ready",
      [inWords(states, plain), ...(nodes.length ? [inWords(nodes, plain)] : [])].join("; "),
      inWords(restarts, plain, "none"),
      memory.map(size).join(", ") || "–",
    ];
    const row = document.createElement("tr");
    row.append(...cells.map((text, column) => cell(text, column)));
    row.className = ready ? "" : "unready";
    return row;
  });
  document.getElementById("models").replaceChildren(...rows);
}

const columns = [...document.querySelectorAll("#models-table th")].map((each) => each.textContent);

/** A cell, with the name of its column for a phone, where each row is a list. */
function cell(text, column) {
  const element = document.createElement(column ? "td" : "th");
  if (!column) element.scope = "row";
  element.dataset.column = columns[column];
  element.textContent = text;
  return element;
}

function inWords(counts, word, none = "–") {
  return counts.filter(([, count]) => count).map(([name, count]) => `${word(count)} ${name}`).join(", ") || (counts.length ? none : "–");
}

function model() {
  return choice?.value ?? "";
}

function known(value, word) {
  return value === null ? "–" : word(value);
}

function say(kind, text) {
  state.className = kind;
  if (state.textContent !== text) state.textContent = text;
}

choice?.addEventListener("change", takeOther);
read();
