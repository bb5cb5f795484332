/** The ways a picture comes in: chosen, dropped, pasted, a sample. The camera has modules of its own. */

import { say } from "./hint.js";

/** @param {(files: File[]) => void} take called with what was given, at least one file */
export function offerPictures(take) {
  const chooser = document.getElementById("file");
  const drop = document.querySelector(".drop");

  chooser.addEventListener("change", () => {
    takeSome(chooser.files);
    chooser.value = ""; // the same picture may be chosen again
  });

  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    drop.classList.remove("over");
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    takeSome(event.dataTransfer.files);
  });
  document.addEventListener("paste", ({ clipboardData: pasted, target }) => {
    if (pasted.files.length) takeSome(pasted.files);
    else if (!target.closest?.("input, textarea")) say(whatElse(pasted.getData("text")));
  });

  for (const button of document.querySelectorAll(".sample")) {
    button.addEventListener("click", async () => {
      const response = await fetch(button.querySelector("img").src).catch(() => null);
      const contents = response?.ok ? await response.blob() : new Blob();
      take([new File([contents], button.dataset.name, { type: "image/jpeg" })]);
    });
  }

  function takeSome(files) {
    if (!files.length) return;
    say("");
    take([...files]);
  }
}

/** What to say about text that was pasted where pictures are taken. */
function whatElse(text) {
  if (/^(https?:|data:|file:)/i.test(text.trim())) {
    return "This is an address, and this page fetches nothing: copy the picture itself, or choose its file.";
  }
  return text.trim()
    ? "This is text, and the model takes pictures: copy a picture, or choose its file."
    : "There is no picture to paste: copy one, or choose its file.";
}
