/** The cards of the answers. What models and people wrote goes in as text, never as HTML. */

import { json, parsed } from "../exact.js";
import { showStages } from "../stages.js";
import { counted, digits, ROUNDED, rounds, title, written } from "../values.js";
import { asSentence, cut, percent, spelled } from "../words.js";
import { copy } from "./commands.js";
import { drawn } from "./drawn.js";
import { layOver } from "./layers.js";
import { bytesOf, fileOf, save, saveJson, stemOf } from "./save.js";
import { upright } from "./upright.js";

const spoken = document.getElementById("spoken");
const LONGEST_SOURCE = 300; // characters of a question
const BARS = 5; // the classes that are ranked, whatever their scores are
const MOST_BARS = 20; // labels
const FIRST_NUMBERS = 8; // of a vector
const { asks, task, threshold } = document.getElementById("ask").dataset;

/** What shows the answers of each task. Those that are not here are JSON, or over pictures, cards of the server's. */
const SHOWN = {
  classification: (card, body) => card.showClasses(body),
  "multi-label": (card, body) => card.showLabels(body),
  regression: (card, body) => card.showNumbers(body.output),
  embedding: (card, body) => card.showVector(body.embedding),
};

/** Whether the server has to make the cards of this model's answers. */
export const madeByServer = asks === "pictures" && !(task in SHOWN);

/** @typedef {import("./ask.js").Answer} Answer */

/** One answer's place on the page, from the moment it is waited for. */
export class Card {
  /**
   * @param {string} source what was sent, for people: the name of a file
   * @param {Blob} [picture] what to show of it
   */
  constructor(source, picture) {
    this.source = source;
    /** Whether it has been answered, and with what: `body`, the JSON, or `error`, a sentence. */
    this.done = false;
    this.element = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.part("source").textContent = cut(source, LONGEST_SOURCE);
    this.part("source").hidden = !source;
    if (picture) this.showPicture(picture);
    this.wait("Waiting");
  }

  part(name) {
    return this.element.querySelector(`.${name}`);
  }

  async showPicture(picture) {
    const image = this.part("picture").querySelector("img");
    image.alt = this.source;
    const shown = await upright(picture).catch(() => null);
    if (!shown) return; // it cannot be read, or not be turned: boxes would lie beside what they are of
    const address = URL.createObjectURL(shown);
    const done = () => URL.revokeObjectURL(address);
    image.addEventListener("load", done, { once: true });
    image.addEventListener("error", () => (done(), (this.part("picture").hidden = true)), { once: true });
    image.src = address;
    this.part("picture").hidden = false;
  }

  /** @param {string} state what it waits for */
  wait(state) {
    this.element.className = "card busy";
    this.element.setAttribute("aria-busy", "true");
    this.done = false;
    const all = ["error", "note", "bars", "text", "all", "foot", "again", "time"];
    for (const name of all) this.part(name).hidden = true;
    this.say(state);
  }

  /** @param {string} state what it waits for */
  say(state) {
    if (this.part("verdict").textContent !== state) this.part("verdict").textContent = state;
  }

  /**
   * @param {Answer} answer
   * @param {() => void} again what the button for another try does
   */
  show(answer, again) {
    this.fill(answer, again);
    const said = this.part("verdict").textContent;
    const verdict = answer.error ?? (said === "Answer" ? "answered" : said);
    spoken.textContent = this.source ? `${cut(this.source, LONGEST_SOURCE)}: ${verdict}` : verdict;
  }

  /** The same, and nothing is announced: of the frames of a camera that would be a flood. */
  fill(answer, again) {
    this.element.removeAttribute("aria-busy");
    Object.assign(this, { done: true, body: answer.body, error: answer.error });
    if (answer.error) this.showError(answer, again);
    else if (answer.card) this.take(answer.card);
    else this.showBody(answer.body);
    if (answer.spent?.size) {
      showStages(this.part("time"), answer.spent);
      this.part("time").hidden = false;
    }
    if (!answer.error) this.offerFiles();
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

  showBody(body) {
    this.element.className = "card";
    if (task in SHOWN) SHOWN[task](this, body);
    else this.showValue(body);
  }

  /** @param {Element} card one that the server has made */
  take(card) {
    const whole = card.querySelector(".json").getAttribute("href");
    if (whole) this.body = parsed(new TextDecoder().decode(bytesOf(whole.split(",")[1])));
    this.error = card.querySelector(".error").textContent || undefined;
    this.element.className = card.className;
    const parts = [...card.querySelector(".said").children].filter((part) => !part.matches(".source"));
    this.part("said").replaceChildren(this.part("source"), ...parts);
    const drawn = card.querySelector(".picture .outlines");
    this.part("picture").querySelector(".outlines")?.remove();
    if (drawn) this.part("picture").append(drawn);
    const masks = card.querySelectorAll(".picture .mask");
    layOver(this.part("picture"), this.part("said"), masks);
    this.file = this.part("png").getAttribute("href")?.split(",")[1];
    if (task === "image-to-image") this.file = masks[0]?.dataset.png; // a picture that was made is there once
  }

  /** What can be done with the answer: unfold it where it is small, and save it. */
  offerFiles() {
    const named = stemOf(this.source);
    this.part("foot").hidden = false;
    const offer = (name, action) => {
      const link = this.part(name);
      link.hidden = false;
      link.href ||= "#"; // what is not an address is no link for the keyboard
      link.onclick = (event) => {
        event.preventDefault();
        action();
      };
    };
    if (this.body) offer("json", () => saveJson(this.body, `${named}.json`));
    const boxes = this.part("picture").querySelector(".outlines");
    if (this.file) offer("png", () => save(fileOf(this.file, "image/png"), `${named}-${this.part("png").download}`));
    else if (boxes) offer("png", async () => save(await drawn(this.part("picture")), `${named}-boxes.png`));
    const unfold = this.part("unfold");
    unfold.hidden = false;
    unfold.onclick = () => unfold.setAttribute("aria-expanded", this.element.classList.toggle("open"));
  }

  showClasses(body) {
    const recognised = body.class_id !== null;
    this.element.className = recognised ? "card" : "card unsure";
    const [best] = body.predictions;
    this.part("verdict").textContent = recognised ? spelled(best.class_name) : "Not recognised";
    this.write("note", body.reason && asSentence(body.reason));
    this.showBars(body.predictions.map(({ class_name: name, probability }) => row(spelled(name), probability)));
  }

  showLabels({ labels, predictions }) {
    const present = labels.slice(0, MOST_BARS);
    const others = predictions.slice(labels.length, BARS);
    const names = present.map(({ label }) => spelled(label)).join(", ");
    const many = labels.length > MOST_BARS;
    this.element.className = labels.length ? "card" : "card unsure";
    this.part("verdict").textContent = many ? `${labels.length} labels` : names || "No label";
    const marked = `Marked are the labels whose score is ${Number((100 * threshold).toPrecision(6))} % or more.`;
    this.write("note", many ? `${marked} The first ${MOST_BARS} are shown.` : marked);
    this.showBars([
      ...present.map(({ label, score }) => row(spelled(label), score, true)),
      ...others.map(({ class_name: name, probability }) => row(spelled(name), probability)),
    ]);
  }

  showNumbers(output) {
    if (!Array.isArray(output)) {
      this.part("verdict").textContent = digits(output);
      return;
    }
    this.part("verdict").textContent = counted(output.flat(Infinity).length);
    this.write("text", output.some(Array.isArray) ? json(output) : output.map(digits).join("\n"));
  }

  showVector(numbers) {
    const rest = numbers.length > FIRST_NUMBERS;
    const length = Math.sqrt(numbers.reduce((sum, number) => sum + (number ?? NaN) ** 2, 0));
    this.part("verdict").textContent = `A vector of ${counted(numbers.length)}, length ${digits(length)}`;
    this.write("text", numbers.slice(0, FIRST_NUMBERS).map(digits).join(", ") + (rest ? ", …" : ""));
    this.part("more").textContent = JSON.stringify(numbers);
    this.part("all").hidden = !rest;
    this.part("copy-all").hidden = false;
    this.part("copy-all").onclick = async ({ currentTarget: button }) => {
      const all = this.part(rest ? "more" : "text");
      if (!navigator.clipboard) this.part("all").open = true; // what is selected must be seen
      button.firstChild.data = (await copy(all, JSON.stringify(numbers))) ? "Copied" : "Selected";
      setTimeout(() => (button.firstChild.data = "Copy"), 2000);
    };
  }

  showBars(rows) {
    this.part("bars").replaceChildren(...rows);
    this.part("bars").hidden = false;
  }

  showValue(body) {
    const value = "output" in body ? body.output : (body.outputs ?? body);
    const name = title(value);
    const text = written(value);
    this.part("verdict").textContent = name;
    this.write("text", text === name ? "" : text);
    this.write("note", rounds(value) ? ROUNDED : "");
  }

  write(name, text) {
    this.part(name).textContent = text ?? "";
    this.part(name).hidden = !text;
  }
}

function row(name, probability, present = false) {
  const item = document.getElementById("row").content.firstElementChild.cloneNode(true);
  item.querySelector(".name").textContent = name;
  if (present) {
    item.className = "present";
    const mark = document.createElement("span");
    mark.className = "unseen";
    mark.textContent = ", present";
    item.querySelector(".name").append(mark);
  }
  item.querySelector(".percent").textContent = percent(probability);
  item.querySelector("rect").setAttribute("width", `${100 * Math.min(Math.max(probability ?? 0, 0), 1)}%`);
  return item;
}
