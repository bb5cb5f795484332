/** What lies over a picture, with a slider for how much it covers: masks with a switch for each, or what became of it. */

/**
 * @param {Element} picture where the picture is
 * @param {Element} said the text of the card, with the switches
 * @param {Iterable<HTMLElement>} masks what the server has sent of each class
 */
export function layOver(picture, said, masks) {
  picture.querySelector(".masks")?.remove();
  const controls = said.querySelector(".layers");
  if (!controls) return;
  const over = document.createElement("div");
  over.className = "masks";
  const slider = controls.querySelector("input[type=range]");
  over.style.opacity = slider.value / 100;
  const switches = [...controls.querySelectorAll("input[type=checkbox]")];
  [...masks].forEach((mask, place) => {
    const image = document.createElement("img");
    const address = URL.createObjectURL(fileOf(mask.dataset.png));
    image.addEventListener("load", () => URL.revokeObjectURL(address), { once: true });
    image.alt = ""; // the list of the card says what there is
    image.src = address;
    const shown = switches[place];
    image.hidden = shown !== undefined && !shown.checked;
    shown?.addEventListener("change", () => (image.hidden = !shown.checked));
    over.append(image);
  });
  slider.addEventListener("input", () => (over.style.opacity = slider.value / 100));
  picture.append(over);
  controls.hidden = false;
}

/**
 * A button that saves a file which the server has put into the card.
 * @param {HTMLElement} button
 * @param {string} base64 the file
 */
export function offerFile(button, base64) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(fileOf(base64));
    link.download = button.dataset.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // not before the browser has read it
  });
}

/** @param {string} base64 a PNG file */
export function fileOf(base64) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type: "image/png" });
}
