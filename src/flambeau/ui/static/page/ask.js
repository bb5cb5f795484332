/** One prediction: a request to the API, and what came of it as a plain value. It shows nothing. */

import { readTiming } from "../stages.js";
import { fetchAllowed } from "../token.js";
import { asSentence } from "../words.js";

/**
 * @typedef {object} Answer
 * @property {any} [body] the JSON of the answer
 * @property {Map<string, number>} [spent] milliseconds by stage
 * @property {string} [error] a sentence, where there is no answer
 * @property {string} [hint] what to do about it, or which request it was
 * @property {boolean} [again] whether the same request may succeed later
 */

/**
 * @param {string} address
 * @param {File | {input: any}} item a file, or a JSON body
 * @returns {Promise<Answer>} never rejects
 */
export async function predict(address, item) {
  let response;
  try {
    response = await fetchAllowed(address, { method: "POST", ...bodyOf(item) });
  } catch {
    return {
      error: "The server cannot be reached.",
      hint: "Is it still running, and are you connected to its network?",
      again: true,
    };
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body) return { body, spent: readTiming(response.headers.get("Server-Timing")) };
  return problem(response, body);
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
