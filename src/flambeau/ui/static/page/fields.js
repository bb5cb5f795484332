/** What was put into the form of a model that takes no pictures: one item, ready to be sent. */

import { say } from "./hint.js";

/**
 * @param {HTMLFormElement} form
 * @returns {{item?: File | {input: any}, error?: string}} a file goes before JSON text, and that before single numbers
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
      return { item: { input: JSON.parse(text) } };
    } catch (error) {
      return { error: `This is not JSON: ${error.message}.` };
    }
  }
  const numbers = [...form.querySelectorAll("[name=number]")].map((field) => field.valueAsNumber);
  if (!numbers.length) return { error: "No input was written." };
  if (numbers.some(Number.isNaN)) return { error: "A number is missing: write one into every field." };
  return { item: { input: nested(numbers, JSON.parse(form.dataset.shape)) } };
}

/** @param {File | {input: any}} item as people read it: the name of a file, or the question */
export function questionOf(item) {
  if (item instanceof File) return item.name;
  if (typeof item.input === "string") return item.input;
  return Array.isArray(item.input) && !item.input.some(Array.isArray) ? item.input.join(", ") : JSON.stringify(item.input);
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
    const texts = event.clipboardData.getData("text").trim().split(/[\s,;]+/);
    if (start < 0 || texts.length < 2) return;
    event.preventDefault();
    const odd = texts.find((text) => text === "" || Number.isNaN(Number(text)));
    const left = fields.length - start;
    if (odd !== undefined) say(`Nothing was filled in, for “${odd.slice(0, 40)}” is not a number.`);
    else if (texts.length > left) say(`Nothing was filled in: ${texts.length} numbers were pasted, and there ${left === 1 ? "is 1 field" : `are ${left} fields`} from here on.`);
    else {
      texts.forEach((text, place) => (fields[start + place].value = text));
      say(`${texts.length} numbers were filled in.`);
    }
  });
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
