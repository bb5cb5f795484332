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

/** Bytes in megabytes of a million bytes, as file managers count, never rounded up: "33.5 MB". */
export function megabytes(count) {
  return count >= 100_000 ? `${Math.floor(count / 100_000) / 10} MB` : `${count / 1000} kB`;
}

/** A text that is no longer than that. */
export function cut(text, most) {
  return text.length <= most ? text : `${text.slice(0, most - 1)}…`;
}
