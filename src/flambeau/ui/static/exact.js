/** JSON with every digit of its whole numbers: JavaScript's own numbers keep 53 bits, so longer ones are a `BigInt` here. */

const TOKENS = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const WHOLE = /^-?\d+$/;
const MAY_BE_LONG = /(?:^|[^\d.eE+-])-?\d{16,}(?![\d.eE])/;
const MARK = `${String(Math.random()).slice(2)}:`; // of a text that stands for a long number

/** @param {string} digits a number as JSON or a field has it */
export function number(digits) {
  const found = Number(digits);
  return WHOLE.test(digits) && !Number.isSafeInteger(found) ? BigInt(digits) : found;
}

/** @param {string} text JSON; throws for anything else, as `JSON.parse` does */
export function parsed(text) {
  const found = JSON.parse(text);
  if (!MAY_BE_LONG.test(text)) return found;
  const marked = text.replace(TOKENS, (token) => (typeof number(token) === "bigint" ? `"${MARK}${token}"` : token));
  const read = (name, value) => (typeof value === "string" && value.startsWith(MARK) ? BigInt(value.slice(MARK.length)) : value);
  return JSON.parse(marked, read);
}

/** @param {any} value as JSON */
export function json(value) {
  const text = JSON.stringify(value, (name, each) => (typeof each === "bigint" ? `${MARK}${each}` : each));
  return text.replace(new RegExp(`"${MARK}(-?\\d+)"`, "g"), "$1");
}
