/** One prediction: a request, and what came of it as a plain value. It shows nothing. */

import { json, parsed } from "../exact.js";
import { readTiming } from "../stages.js";
import { fetchAllowed } from "../token.js";
import { asSentence, megabytes } from "../words.js";
import { watched } from "./upload.js";

/**
 * @typedef {object} Answer
 * @property {any} [body] the JSON of the answer
 * @property {Element} [card] the answer as the server shows it
 * @property {Map<string, number>} [spent] milliseconds by stage
 * @property {string} [error] a sentence, where there is no answer
 * @property {string} [hint] what to do about it, or which request it was
 * @property {boolean} [again] whether the same request may succeed later
 */

/**
 * @typedef {object} Input a JSON body
 * @property {any} input what it asks about
 * @property {string} [text] the same as it was typed: `1.0` is more to a program than 1
 */

const FORM = 512; // bytes that a form has around its file, at most

const UNREACHED = {
  error: "The server cannot be reached.",
  hint: "Is it still running, and are you connected to its network?",
  again: true,
};

/**
 * @param {string} address
 * @param {File | Input} item a file, or a JSON body
 * @param {(sent: number, whole: number) => void} [watch] called with bytes, as they leave
 * @returns {Promise<Answer>} never rejects
 */
export async function predict(address, item, watch = () => {}) {
  const response = await fetchAllowed(address, { method: "POST", ...bodyOf(item) }, watched(watch)).catch(() => null);
  if (!response) return UNREACHED;
  const body = read(await response.text().catch(() => ""));
  if (response.ok && body) return { body, spent: readTiming(response.headers.get("Server-Timing")) };
  return problem(response, body);
}

/**
 * The same by the page's own form, as without a script: its card is the answer. The page keeps the pictures to itself.
 * @param {string} page
 * @param {File} item
 * @param {(sent: number, whole: number) => void} [watch] called with bytes, as they leave
 * @returns {Promise<Answer>} never rejects
 */
export async function predictOnPage(page, item, watch = () => {}) {
  const address = new URL(page, location.href);
  address.searchParams.set("pictures", "no");
  const response = await fetchAllowed(address, { method: "POST", ...bodyOf(item) }, watched(watch)).catch(() => null);
  if (!response) return UNREACHED;
  const text = await response.text().catch(() => "");
  const card = new DOMParser().parseFromString(text, "text/html").querySelector("#cards .card");
  if (!card) return problem(response, read(text)); // it was refused before the page was asked, as too many requests are
  if (response.ok) return { card };
  const [error, hint] = [".error", ".note"].map((part) => card.querySelector(part).textContent);
  return { error, hint: [hint, reference(response)].filter(Boolean).join(" · "), again: "again" in card.dataset };
}

function read(text) {
  try {
    return parsed(text);
  } catch {
    return null;
  }
}

/**
 * @param {File | Input} item
 * @param {number} most bytes that the server takes in one request
 * @returns {Answer | null} why it need not be sent; null where it may be
 */
export function tooLarge(item, most) {
  const size = item instanceof File ? item.size + FORM : new Blob([textOf(item)]).size;
  if (size <= most) return null;
  const error = `${item.name ?? "This input"} has ${megabytes((item.size ?? size) + 99_999)}, and this service takes ${megabytes(most)} in one request.`;
  return { error, hint: "Nothing was sent. Make it smaller; the limit is the operator's --max-body-bytes." };
}

/** @param {Input} item as it is sent */
export function textOf({ input, text }) {
  return `{"input":${text ?? json(input)}}`;
}

function bodyOf(item) {
  if (item instanceof File) {
    const form = new FormData();
    form.append("file", item, "file"); // its own name is nobody's business
    return { body: form };
  }
  return { body: textOf(item), headers: { "Content-Type": "application/json" } };
}

function reference(response) {
  const identity = response.headers.get("X-Request-ID");
  return identity ? `Request ${identity}` : "";
}

function problem(response, body) {
  if (!body?.error) {
    return { error: `The server answered ${response.status} without saying why.`, hint: reference(response), again: response.status >= 500 };
  }
  const hint = [body.hint, reference(response)].filter(Boolean).join(" · ");
  return { error: asSentence(body.error), hint, again: body.retryable === true };
}
