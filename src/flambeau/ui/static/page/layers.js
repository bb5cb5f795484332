/** What lies over a picture, with a slider for how much it covers: masks with a switch for each, or what became of it. */

import { fileOf } from "./save.js";

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
    const address = URL.createObjectURL(fileOf(mask.dataset.png, "image/png"));
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
