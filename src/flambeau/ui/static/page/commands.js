/** The request as commands: their slots are filled with what was last sent, quoted for their language. */

import { textOf } from "./ask.js";

/** @param {string} address of the predictions, absolute */
export function showAddress(address) {
  fill("address", address);
}

/** @param {File | import("./ask.js").Input} item what was last sent */
export function showItem(item) {
  if (item instanceof File) {
    fill("shell-file", quotedForShell(`file=@${quotedForCurl(item.name)}`));
    fill("python-file", JSON.stringify(item.name));
  } else {
    fill("shell-json", quotedForShell(textOf(item)));
    fill("python-json", forPython(item.input));
  }
}

/** With a token the commands read it from the environment: it is never written on the page. */
export function showToken() {
  for (const slot of slots("token")) slot.hidden = false;
}

export function offerCopies() {
  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    const label = button.firstChild;
    button.addEventListener("click", async () => {
      label.data = (await copy(document.getElementById(button.dataset.copy))) ? "Copied" : "Selected";
      setTimeout(() => (label.data = "Copy"), 2000);
    });
  }
}

/**
 * @param {HTMLElement} code
 * @param {string} [text] what is copied: as it is shown, without what is hidden
 * @returns {Promise<boolean>} false where the clipboard is closed to us, and the text was only selected
 */
export async function copy(code, text = code.innerText) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(code); // a page that came over plain HTTP has no clipboard
    return document.execCommand("copy");
  }
}

function slots(name) {
  return document.querySelectorAll(`[data-slot="${name}"]`);
}

function fill(name, text) {
  for (const slot of slots(name)) slot.textContent = text;
}

/** In a form's part curl reads `;` and `,` as the end of a file's name, unless it is in quotes. */
function quotedForCurl(name) {
  return /[;,"\\]/.test(name) ? `"${name.replace(/["\\]/g, "\\$&")}"` : name;
}

function quotedForShell(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A JSON value as a Python literal. */
function forPython(value) {
  if (value === null) return "None";
  if (typeof value === "bigint") return String(value);
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(forPython).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([key, each]) => `${JSON.stringify(key)}: ${forPython(each)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}
