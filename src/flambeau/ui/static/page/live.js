/** The live camera: a frame is sent when the answer to the one before has come, until somebody stops it. */

import { predict, predictOnPage } from "./ask.js";
import { capture, letGo, watch } from "./camera.js";
import { Card, madeByServer } from "./cards.js";
import { say } from "./hint.js";

const LONGEST_SIDE = 640; // pixels of a frame: more would take longer to send than to answer
const PAUSE = 1000; // milliseconds, when the server is busy
const SMOOTH = 10; // frames over which the rate is taken

const place = document.getElementById("live");
const button = document.getElementById("go-live");
const rate = document.getElementById("live-rate");
const spoken = document.getElementById("spoken");
const video = place?.querySelector("video"); // only where the model takes pictures
const form = document.getElementById("ask");

/** Each start has a number of its own, so that an answer to an earlier one is not shown. */
let run = 0;
let running = false;

/** @param {URL} address of the predictions */
export function offerLive(address) {
  button.addEventListener("click", () => (running ? stop() : start(address)));
  document.getElementById("stop-live").addEventListener("click", () => stop());
  document.addEventListener("keydown", ({ key }) => key === "Escape" && running && stop());
}

async function start(address) {
  const mine = ++run;
  const seen = await watch(video);
  if (!seen) return;
  if (mine !== run) return;
  running = true;
  button.setAttribute("aria-pressed", "true");
  rate.textContent = "Waiting for the first answer";
  const card = new Card("");
  card.element.classList.add("live-card");
  card.part("picture").replaceChildren(video);
  card.part("picture").hidden = false;
  place.querySelector(".card")?.remove();
  place.append(card.element);
  place.hidden = false;
  await video.play(); // a video stops when it is moved
  place.scrollIntoView({ block: matchMedia("(pointer: coarse)").matches ? "start" : "nearest" });
  document.getElementById("stop-live").focus();
  spoken.textContent = "The live camera is on.";
  seen.getVideoTracks()[0].addEventListener("ended", () => mine === run && stop("The camera was switched off."));
  await send(card, address, mine);
}

/** @param {string} [why] a sentence, if nobody asked for it */
function stop(why = "") {
  run += 1;
  running = false;
  letGo(video);
  place.hidden = true;
  button.setAttribute("aria-pressed", "false");
  button.focus();
  say(why);
  spoken.textContent = "The live camera is off.";
}

async function send(card, address, mine) {
  const times = [];
  while (mine === run) {
    await shown();
    const frame = await capture(video, LONGEST_SIDE);
    if (!frame) {
      await new Promise(requestAnimationFrame);
      continue;
    }
    const answer = await (madeByServer ? predictOnPage(form.action, frame) : predict(address, frame));
    if (mine !== run) return;
    if (answer.error && !answer.again) {
      stop(answer.error);
      return;
    }
    if (answer.error) {
      rate.textContent = answer.error;
      await new Promise((done) => setTimeout(done, PAUSE));
      continue;
    }
    card.fill(answer);
    times.push(performance.now());
    if (times.length > SMOOTH) times.shift();
    if (times.length > 1) rate.textContent = paceOf(times);
  }
}

function paceOf(times) {
  const each = (times.at(-1) - times[0]) / (times.length - 1);
  return `${(1000 / each).toFixed(1)} answers per second, one in ${each.toFixed(0)} ms`;
}

/** As soon as somebody may be looking: a hidden tab sends nothing. */
function shown() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
}
