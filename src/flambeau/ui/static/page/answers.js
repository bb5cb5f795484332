/** All answers together: how they are laid out, what is kept of them, and their download. */

import { save, saveJson } from "./save.js";
import { asTable } from "./table.js";

const cards = document.getElementById("cards");
const nothing = document.getElementById("nothing");
const tools = document.getElementById("answer-tools");
const grid = document.getElementById("as-grid");
const leftOut = document.getElementById("left-out");
const MOST_CARDS = 200; // what is older is not shown any more, and is in the downloads
const FEW_CARDS = 4; // more are shown side by side, and small

/** @typedef {import("./cards.js").Card} Card */
/** @type {Card[]} the newest first; those that were cleared are gone */
let kept = [];
/** @type {boolean | null} whether a grid was chosen, or the other; by itself the number of cards decides */
let chosen = null;

/** @param {Card[]} made the newest, which go before the others */
export function putFirst(made) {
  kept = [...made, ...kept];
  cards.prepend(...made.map((card) => card.element));
  while (cards.children.length > MOST_CARDS) cards.lastElementChild.remove();
  refresh();
}

function refresh() {
  const many = chosen ?? kept.length > FEW_CARDS;
  cards.classList.toggle("many", many);
  grid.setAttribute("aria-pressed", many);
  grid.hidden = cards.children.length < 2;
  nothing.hidden = cards.children.length > 0;
  tools.hidden = !nothing.hidden;
  const more = kept.length > MOST_CARDS;
  leftOut.hidden = !more;
  leftOut.textContent = more ? `The newest ${MOST_CARDS} of ${kept.length} are shown; the downloads have all of them.` : "";
}

/** The answers in the order in which they were asked for, without those that are still waited for. */
function entries() {
  return kept.filter(({ done }) => done).map(({ source, body, error }) => ({ source, body, error }));
}

export function offerAnswers() {
  grid.addEventListener("click", () => {
    chosen = !cards.classList.contains("many");
    refresh();
  });
  document.getElementById("save-csv").addEventListener("click", () => {
    save(new Blob([asTable(cards.dataset.task, entries())], { type: "text/csv" }), "answers.csv");
  });
  document.getElementById("save-json").addEventListener("click", () => {
    const all = entries().map(({ source: item, body, error }) => (body ? { item, answer: body } : { item, error }));
    saveJson(all, "answers.json");
  });
  document.getElementById("clear").addEventListener("click", () => {
    kept = [];
    chosen = null;
    cards.replaceChildren();
    refresh();
    document.querySelector("#file, #input, [name=number]")?.focus(); // the button that had the focus is gone
  });
  refresh();
}
