/** A picture from the camera: the phone's own application where there is one, else a small viewfinder. */

const dialog = document.getElementById("viewfinder");
const video = dialog.querySelector("video");

/** @param {(files: File[]) => void} take called with the picture */
export function offerCamera(take) {
  const button = document.getElementById("take");
  const phone = document.getElementById("camera");
  const touched = matchMedia("(pointer: coarse)").matches;
  if (!touched && !navigator.mediaDevices?.getUserMedia) {
    button.parentElement.hidden = true;
    return;
  }
  button.addEventListener("click", () => (touched ? phone.click() : open(button)));
  phone.addEventListener("change", () => {
    if (phone.files.length) take([...phone.files]);
    phone.value = "";
  });
  document.getElementById("shutter").addEventListener("click", async () => {
    const picture = await capture();
    dialog.close();
    if (picture) take([picture]);
  });
  document.getElementById("no-picture").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    video.srcObject = null;
  });
}

async function open(button) {
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    button.textContent = "No camera, or it may not be used";
    button.disabled = true;
    return;
  }
  dialog.showModal();
  await video.play();
}

/** @returns {Promise<File | null>} what the camera sees now; nothing before it sees anything */
async function capture() {
  if (!video.videoWidth) return null;
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const contents = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  return contents && new File([contents], "camera.jpg", { type: "image/jpeg" });
}
