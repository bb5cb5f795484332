/** What models and servers say, as people write it. */

/** The API's sentences begin small and end without a point. */
export function asSentence(text) {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

/** @param {number} probability from 0 to 1 */
export function percent(probability) {
  return probability >= 0.0005 ? `${(100 * probability).toFixed(1)} %` : "< 0.1 %";
}

/** The name of a class: those of ImageNet are joined by underscores. */
export function spelled(name) {
  return name.replaceAll("_", " ");
}
