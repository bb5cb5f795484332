/** The page: what is given is sent, and what comes back is shown. */

import { credentials } from "../token.js";
import { megabytes } from "../words.js";
import { offerAnswers, putFirst } from "./answers.js";
import { predict, predictOnPage, tooLarge } from "./ask.js";
import { offerCamera } from "./camera.js";
import { Card, madeByServer } from "./cards.js";
import { offerCopies, showAddress, showItem, showToken } from "./commands.js";
import { offerPasting, questionOf, readFields } from "./fields.js";
import { offerLive } from "./live.js";
import { offerPictures } from "./pictures.js";

const AT_ONCE = 4; // requests: enough to fill a batch, and few enough to leave the browser connections
const form = document.getElementById("ask");
const address = new URL(form.dataset.address, location.href);
if (form.dataset.topK) address.searchParams.set("top_k", form.dataset.topK);

/** @type {(() => Promise<void>)[]} what has not been sent yet */
const waiting = [];
let running = 0;

/** @param {File[]} files one request for each, so that each is shown as soon as it is answered */
function takeFiles(files) {
  const cards = files.map((file) => new Card(file.name, form.dataset.asks === "pictures" ? file : undefined));
  putFirst(cards);
  showItem(files[0]);
  cards.forEach((card, index) => send(card, files[index]));
}

function send(card, item) {
  const refused = tooLarge(item, Number(form.dataset.mostBytes));
  if (refused) {
    card.show(refused);
    return;
  }
  card.wait("Waiting");
  waiting.push(async () => {
    card.wait("Computing");
    const watch = (sent, whole) => card.say(sent < whole ? `Sending ${Math.floor((100 * sent) / whole)} % of ${megabytes(whole)}` : "Computing");
    const asked = madeByServer ? predictOnPage(form.action, item, watch) : predict(address, item, watch);
    card.show(await asked, () => send(card, item));
  });
  next();
}

function next() {
  if (running === AT_ONCE || !waiting.length) return;
  running += 1;
  waiting.shift()().finally(() => {
    running -= 1;
    next();
  });
}

function takeFields() {
  const { item, error } = readFields(form);
  const card = new Card(item ? questionOf(item) : "");
  putFirst([card]);
  if (error) {
    card.show({ error });
    return;
  }
  showItem(item);
  send(card, item);
}

showAddress(address.href);
offerAnswers();
offerCopies();
if (Object.keys(credentials()).length) showToken();
document.addEventListener("token", showToken);
document.getElementById("model")?.addEventListener("change", (event) => event.target.form.submit());
for (const element of document.querySelectorAll(".live")) element.hidden = false;

if (form.dataset.asks === "pictures") {
  form.querySelector("button.primary").hidden = true; // choosing is enough
  offerPictures(takeFiles);
  offerCamera(takeFiles);
  offerLive(address);
} else {
  offerPasting(form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    takeFields();
  });
}
document.documentElement.classList.add("scripted"); // from now on it answers to everything
