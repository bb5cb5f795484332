/** The cards of the answers. What models and people wrote goes in as text, never as HTML. */

import { showStages } from "../stages.js";
import { asSentence, percent, spelled } from "../words.js";

const cards = document.getElementById("cards");
const nothing = document.getElementById("nothing");
const clear = document.getElementById("clear");
const spoken = document.getElementById("spoken");
const MOST_CARDS = 100;

/** @typedef {import("./ask.js").Answer} Answer */

/** One answer's place on the page, from the moment it is waited for. */
export class Card {
  /**
   * @param {string} source what was sent, for people: the name of a file
   * @param {Blob} [picture] what to show of it
   */
  constructor(source, picture) {
    this.source = source;
    this.element = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.part("source").textContent = source;
    this.part("source").hidden = !source;
    if (picture) this.showPicture(picture);
    this.wait("Waiting");
  }

  part(name) {
    return this.element.querySelector(`.${name}`);
  }

  showPicture(picture) {
    const image = this.part("picture").querySelector("img");
    const address = URL.createObjectURL(picture);
    const done = () => URL.revokeObjectURL(address);
    image.addEventListener("load", done, { once: true });
    image.addEventListener("error", () => (done(), (this.part("picture").hidden = true)), { once: true });
    image.alt = this.source;
    image.src = address;
    this.part("picture").hidden = false;
  }

  /** @param {string} state what it waits for */
  wait(state) {
    this.element.className = "card busy";
    this.element.setAttribute("aria-busy", "true");
    for (const name of ["error", "note", "bars", "text", "again", "time"]) this.part(name).hidden = true;
    this.part("verdict").textContent = state;
  }

  /**
   * @param {Answer} answer
   * @param {() => void} again what the button for another try does
   */
  show(answer, again) {
    this.element.removeAttribute("aria-busy");
    if (answer.error) this.showError(answer, again);
    else if (answer.body.predictions) this.showClasses(answer.body);
    else this.showValue(answer.body);
    if (answer.spent?.size) {
      showStages(this.part("time"), answer.spent);
      this.part("time").hidden = false;
    }
    const verdict = answer.error ?? (answer.body.predictions ? this.part("verdict").textContent : "answered");
    spoken.textContent = this.source ? `${this.source}: ${verdict}` : verdict;
  }

  showError({ error, hint, again: worthIt }, again) {
    this.element.className = "card failed";
    this.part("verdict").textContent = "Not answered";
    this.write("error", error);
    this.write("note", hint);
    const button = this.part("again");
    button.hidden = !worthIt;
    button.onclick = again;
  }

  showClasses(body) {
    const recognised = body.class_id !== null;
    this.element.className = recognised ? "card" : "card unsure";
    const [best] = body.predictions;
    this.part("verdict").textContent = recognised ? spelled(best.class_name) : "Not recognised";
    this.write("note", body.reason && asSentence(body.reason));
    const rows = body.predictions.map(({ class_name: name, probability }) => row(spelled(name), probability));
    this.part("bars").replaceChildren(...rows);
    this.part("bars").hidden = false;
  }

  showValue(body) {
    this.element.className = "card";
    this.part("verdict").textContent = "Answer";
    this.write("text", JSON.stringify("output" in body ? body.output : body, null, 2));
  }

  write(name, text) {
    this.part(name).textContent = text ?? "";
    this.part(name).hidden = !text;
  }
}

/** @param {Card[]} made the newest, which go before the others */
export function putFirst(made) {
  cards.prepend(...made.map((card) => card.element));
  while (cards.children.length > MOST_CARDS) cards.lastElementChild.remove();
  refresh();
}

function row(name, probability) {
  const item = document.getElementById("row").content.firstElementChild.cloneNode(true);
  item.querySelector(".name").textContent = name;
  item.querySelector(".percent").textContent = percent(probability);
  item.querySelector("rect").setAttribute("width", `${100 * probability}%`);
  return item;
}

function refresh() {
  nothing.hidden = cards.children.length > 0;
  clear.hidden = !nothing.hidden;
}

clear.addEventListener("click", () => {
  cards.replaceChildren();
  refresh();
});
refresh();
