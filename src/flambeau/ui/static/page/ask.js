/** One prediction: a request, and what came of it as a plain value. It shows nothing. */

import { readTiming } from "../stages.js";
import { fetchAllowed } from "../token.js";
import { asSentence } from "../words.js";

/**
 * @typedef {object} Answer
 * @property {any} [body] the JSON of the answer
 * @property {Element} [card] the answer as the server shows it
 * @property {Map<string, number>} [spent] milliseconds by stage
 * @property {string} [error] a sentence, where there is no answer
 * @property {string} [hint] what to do about it, or which request it was
 * @property {boolean} [again] whether the same request may succeed later
 */

const UNREACHED = {
  error: "The server cannot be reached.",
  hint: "Is it still running, and are you connected to its network?",
  again: true,
};

/**
 * @param {string} address
 * @param {File | {input: any}} item a file, or a JSON body
 * @returns {Promise<Answer>} never rejects
 */
export async function predict(address, item) {
  const response = await fetchAllowed(address, { method: "POST", ...bodyOf(item) }).catch(() => null);
  if (!response) return UNREACHED;
  const body = await response.json().catch(() => null);
  if (response.ok && body) return { body, spent: readTiming(response.headers.get("Server-Timing")) };
  return problem(response, body);
}

/**
 * The same by the page's own form, as without a script: its card is the answer.
 * @param {string} page
 * @param {File} item
 * @returns {Promise<Answer>} never rejects
 */
export async function predictOnPage(page, item) {
  const response = await fetchAllowed(page, { method: "POST", ...bodyOf(item) }).catch(() => null);
  if (!response) return UNREACHED;
  const shown = new DOMParser().parseFromString(await response.text().catch(() => ""), "text/html");
  const card = shown.querySelector("#cards .card");
  return card ? { card } : problem(response, null);
}

function bodyOf(item) {
  if (item instanceof File) {
    const form = new FormData();
    form.append("file", item, "file"); // its own name is nobody's business
    return { body: form };
  }
  return { body: JSON.stringify(item), headers: { "Content-Type": "application/json" } };
}

function problem(response, body) {
  const identity = response.headers.get("X-Request-ID");
  const reference = identity ? `Request ${identity}` : "";
  if (!body?.error) {
    return { error: `The server answered ${response.status} without saying why.`, hint: reference, again: response.status >= 500 };
  }
  const hint = [body.hint, reference].filter(Boolean).join(" · ");
  return { error: asSentence(body.error), hint, again: body.retryable === true };
}
