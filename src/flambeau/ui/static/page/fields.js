/** What was put into the form of a model that takes no pictures: one item, ready to be sent. */

import { json, number, parsed } from "../exact.js";
import { say } from "./hint.js";

/**
 * @param {HTMLFormElement} form
 * @returns {{item?: File | import("./ask.js").Input, error?: string}} a file goes before JSON text, and that before single numbers
 */
export function readFields(form) {
  const file = form.elements.file?.files[0];
  if (file) return { item: file };
  if (form.dataset.asks === "sound") return { error: "No sound file was chosen." };
  if (form.dataset.asks === "text") {
    const written = form.elements.input.value;
    return written.trim() ? { item: { input: written } } : { error: "No text was written." };
  }
  const text = form.elements.input.value.trim();
  if (text) {
    try {
      return { item: { input: parsed(text), text } };
    } catch (error) {
      return { error: `This is not JSON: ${error.message}.` };
    }
  }
  const fields = [...form.querySelectorAll("[name=number]")];
  if (!fields.length) return { error: "No input was written." };
  if (fields.some((field) => field.value === "")) return { error: "A number is missing: write one into every field." };
  const numbers = fields.map((field) => number(field.value));
  return { item: { input: nested(numbers, JSON.parse(form.dataset.shape)) } };
}

/** @param {File | import("./ask.js").Input} item as people read it: the name of a file, or the question */
export function questionOf(item) {
  if (item instanceof File) return item.name;
  if (typeof item.input === "string") return item.input;
  return Array.isArray(item.input) && !item.input.some(Array.isArray) ? item.input.join(", ") : (item.text ?? json(item.input));
}

/**
 * Several numbers that are pasted into a field, as from a spreadsheet, go into the fields from there on.
 * @param {HTMLFormElement} form
 */
export function offerPasting(form) {
  const fields = [...form.querySelectorAll("[name=number]")];
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length && !form.elements.file) {
      say("This model takes no files: write its input into the form.");
      return;
    }
    const start = fields.indexOf(event.target);
    const pasted = event.clipboardData.getData("text").trim();
    const texts = pasted.split(/[\s,;]+/);
    if (start < 0 || texts.length < 2) return;
    event.preventDefault();
    const odd = texts.find((text) => !isTaken(text));
    const either = decimalsOrPairs(pasted);
    const left = fields.length - start;
    if (odd !== undefined) say(`Nothing was filled in, for “${odd.slice(0, 40)}” is not a number.`);
    else if (either) say(`Nothing was filled in, for “${either}” may be one number or two: write a point in it, or a space behind its comma.`);
    else if (texts.length > left) say(`Nothing was filled in: ${texts.length} numbers were pasted, and there ${left === 1 ? "is 1 field" : `are ${left} fields`} from here on.`);
    else {
      texts.forEach((text, place) => (fields[start + place].value = text));
      say(`${texts.length} numbers were filled in.`);
    }
  });
}

/** Whether a field for numbers takes that text: it is empty after any other. */
function isTaken(text) {
  const field = Object.assign(document.createElement("input"), { type: "number", value: text });
  return field.value !== "";
}

/** The first of texts like “1,5”, if all that have commas are such: a comma is the point of many languages. */
function decimalsOrPairs(pasted) {
  const pairs = pasted.split(/[\s;]+/).filter((text) => text.includes(","));
  return pairs.every((text) => /^-?\d+,\d+$/.test(text)) ? pairs[0] : undefined;
}

/** The numbers as lists in lists, in row-major order; without a shape the number itself. */
function nested(numbers, shape) {
  if (!shape.length) return numbers[0];
  let rows = numbers;
  for (const size of shape.slice(1).reverse()) {
    rows = Array.from({ length: rows.length / size }, (_, row) => rows.slice(row * size, (row + 1) * size));
  }
  return rows;
}
