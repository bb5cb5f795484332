/** Files that the browser saves. */

import { json } from "../exact.js";

const KEPT = 60_000; // milliseconds: not before the browser has read the file

/**
 * @param {Blob} contents
 * @param {string} name
 */
export function save(contents, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(contents);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), KEPT);
}

/** @param {any} value saved as JSON, with every digit */
export function saveJson(value, name) {
  save(new Blob([json(value)], { type: "application/json" }), name);
}

/** @param {string} base64 contents of a file */
export function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

/**
 * @param {string} base64 contents of a file
 * @param {string} type its media type
 */
export function fileOf(base64, type) {
  return new Blob([bytesOf(base64)], { type });
}

/** What a file of an answer is called, without its ending: as the file that was sent. */
export function stemOf(name) {
  const stem = name.replace(/^.*[\\/]/, "").replace(/(?<=.)\.[^.]*$/, "");
  return stem && stem.length <= 80 ? stem : "answer";
}
