/** The ways a picture comes in: chosen, dropped, pasted, a sample. The camera has a module of its own. */

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
  document.addEventListener("paste", (event) => takeSome(event.clipboardData.files));

  for (const button of document.querySelectorAll(".sample")) {
    button.addEventListener("click", async () => {
      const response = await fetch(button.querySelector("img").src).catch(() => null);
      const contents = response?.ok ? await response.blob() : new Blob();
      take([new File([contents], button.dataset.name, { type: "image/jpeg" })]);
    });
  }

  function takeSome(files) {
    if (files.length) take([...files]);
  }
}
