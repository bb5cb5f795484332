/** The page: what is given is sent, and what comes back is shown. */

import { credentials } from "../token.js";
import { predict, predictOnPage } from "./ask.js";
import { offerCamera } from "./camera.js";
import { Card, madeByServer, putFirst } from "./cards.js";
import { offerCopies, showAddress, showItem, showToken } from "./commands.js";
import { readFields } from "./fields.js";
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
  card.wait("Waiting");
  waiting.push(async () => {
    card.wait("Computing");
    const asked = madeByServer ? predictOnPage(form.action, item) : predict(address, item);
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
  const card = new Card(item instanceof File ? item.name : "");
  putFirst([card]);
  if (error) {
    card.show({ error });
    return;
  }
  showItem(item);
  send(card, item);
}

showAddress(address.href);
offerCopies();
if (Object.keys(credentials()).length) showToken();
document.addEventListener("token", showToken);
document.getElementById("model")?.addEventListener("change", (event) => event.target.form.submit());
for (const element of document.querySelectorAll(".live")) element.hidden = false;

if (form.dataset.asks === "pictures") {
  form.querySelector("button.primary").hidden = true; // choosing is enough
  offerPictures(takeFiles);
  offerCamera(takeFiles);
} else {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    takeFields();
  });
}
