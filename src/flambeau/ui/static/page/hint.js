/** A sentence below the form about what was just tried, until something else is. */

const place = document.getElementById("hint");

/** @param {string} sentence nothing to take it back */
export function say(sentence) {
  place.textContent = sentence;
}
