/** What models and servers say, as people write it. */

/** The API's sentences begin small and end without a point. */
export function asSentence(text) {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

/** @param {?number} probability from 0 to 1; null stands for what is not a number */
export function percent(probability) {
  if (probability === null) return "not a number";
  return probability >= 0.0005 ? `${(100 * probability).toFixed(1)} %` : "< 0.1 %";
}

/** The name of a class: those of ImageNet are joined by underscores. */
export function spelled(name) {
  return name.replaceAll("_", " ");
}

/** @param {?number} number of float32: as many digits as it has */
export function digits(number) {
  return number === null ? "not a number" : String(Number(number.toPrecision(6)));
}

/** How many numbers: "512 numbers". */
export function counted(count) {
  return `${count.toLocaleString("en")} number${count === 1 ? "" : "s"}`;
}
