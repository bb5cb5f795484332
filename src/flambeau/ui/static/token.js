/** The access token: asked for when the server wants one, kept for this tab only, and sent nowhere else. */

import { asSentence } from "./words.js";

const KEY = "flambeau-token";
const NO_TOKEN = "This is no token: copy it alone, without quotation marks, blanks or signs that cannot be seen.";
/** @type {Promise<void> | null} while somebody is asked, everybody waits for the one answer */
let asking = null;

/** @returns {Record<string, string>} the headers that carry the token, if there is one */
export function credentials() {
  const token = sessionStorage.getItem(KEY);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/**
 * `fetch`, which asks for a token when the server wants one, or another one, and then tries again.
 * @param {string} address
 * @param {RequestInit} [request] its body must be readable more than once: no stream
 * @param {typeof fetch} [ask] what sends it
 * @returns {Promise<Response>}
 */
export async function fetchAllowed(address, request = {}, ask = fetch) {
  for (;;) {
    const sent = credentials();
    const response = await ask(address, { ...request, headers: { ...request.headers, ...sent } });
    const refused = response.status === 401 || (response.status === 403 && sent.Authorization);
    if (!refused) return response;
    const changed = credentials().Authorization !== sent.Authorization; // another request has asked meanwhile
    if (!changed) await askOnce(sent.Authorization ? await reason(response) : "");
  }
}

async function reason(response) {
  const body = await response.json().catch(() => null);
  return body?.error ? asSentence(body.error) : "This token was not accepted.";
}

function askOnce(why) {
  asking ??= askFor(why).finally(() => (asking = null));
  return asking;
}

/** Show the form `#access` until a token was given. */
function askFor(why) {
  const form = document.getElementById("access");
  const field = form.querySelector("input");
  if (why) form.querySelector("#access-why").textContent = why;
  field.value = "";
  form.hidden = false;
  field.focus();
  return new Promise((given) => {
    const take = (event) => {
      event.preventDefault();
      const token = field.value.trim();
      if (!/^[!-~]+$/.test(token)) { // no header can carry it: no request would leave the browser any more
        form.querySelector("#access-why").textContent = NO_TOKEN;
        field.select();
        return;
      }
      form.removeEventListener("submit", take);
      sessionStorage.setItem(KEY, token);
      field.value = "";
      form.hidden = true;
      document.dispatchEvent(new Event("token"));
      given();
    };
    form.addEventListener("submit", take);
  });
}
