/** Values as people read them; `ui/values.py` writes the same. A program reads the answer itself, with every digit. */

import { json } from "./exact.js";

const DIGITS = 6; // of a number, unless it has more before its point: a float32 is known to about seven
const DEEPEST = 32; // levels that are written one below the other
const LONGEST_TITLE = 60; // characters

export const ROUNDED = "Rounded to six digits; the download has every one.";

/** @param {?number | bigint} number null stands for what is not a number */
export function digits(number) {
  if (number === null) return "not a number";
  if (typeof number === "bigint" || Number.isInteger(number)) return String(number);
  return String(Number(number.toPrecision(Math.max(DIGITS, Math.floor(Math.log10(Math.abs(number))) + 1))));
}

/** Whether a number somewhere in a value has more digits than are shown. */
export function rounds(value) {
  if (typeof value === "number") return Number(digits(value)) !== value;
  return isSeveral(value) && Object.values(value).some(rounds);
}

/** How many numbers: "512 numbers". */
export function counted(count) {
  return `${count.toLocaleString("en")} number${count === 1 ? "" : "s"}`;
}

/** An answer in a few words: the value itself if it is short, or how many numbers it has. */
export function title(value) {
  if (typeof value === "string" && value && value.length <= LONGEST_TITLE) return value;
  if (value === null || typeof value === "boolean" || isNumber(value)) return written(value);
  const shape = shapeOf(value);
  if (!shape) return "Answer";
  return shape.length === 1 ? counted(shape[0]) : `${shape.join(" × ")} numbers`;
}

/** A value as JSON for people: a text is itself, lists of single values have one line each. */
export function written(value, level = 0) {
  if (typeof value === "string" && !level) return value;
  if (isNumber(value)) return digits(value);
  const several = isSeveral(value) ? Object.values(value) : [];
  if (!several.length || level === DEEPEST) return json(value);
  const listed = Array.isArray(value);
  const texts = Object.entries(value).map(
    ([name, each]) => (listed ? "" : `${JSON.stringify(name)}: `) + written(each, level + 1),
  );
  const [first, last] = listed ? "[]" : "{}";
  if (listed && !several.some(isSeveral)) return first + texts.join(", ") + last;
  const space = "  ".repeat(level);
  return `${first}\n${texts.map((text) => `${space}  ${text}`).join(",\n")}\n${space}${last}`;
}

function isNumber(value) {
  return typeof value === "number" || typeof value === "bigint";
}

function isSeveral(value) {
  return typeof value === "object" && value !== null;
}

/** The shape of nested lists of numbers, each level as long as its siblings; null for anything else. */
function shapeOf(value) {
  if (!Array.isArray(value) || !value.length) return null;
  if (value.every(isNumber)) return [value.length];
  const [first, ...others] = value.map(shapeOf);
  return first && others.every((each) => String(each) === String(first)) ? [value.length, ...first] : null;
}
