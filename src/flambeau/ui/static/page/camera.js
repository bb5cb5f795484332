/** The camera: what it sees, as a file; and a picture from it, by the phone's own application where there is one. */

import { say } from "./hint.js";

const QUALITY = 0.92; // of a JPEG file
const REFUSED = {
  NotAllowedError: "The camera may not be used: allow it for this page in the browser, and try again.",
  NotFoundError: "No camera was found: connect one, and try again.",
  NotReadableError: "The camera cannot be read: close the program that uses it, and try again.",
};
const CLOSED = "A browser gives its camera only to pages over HTTPS, or of this machine (localhost).";

const dialog = document.getElementById("viewfinder");
const finder = dialog.querySelector("video");

/**
 * Show on a video element what the camera sees.
 * @param {HTMLVideoElement} video
 * @returns {Promise<MediaStream | null>} null where there is no camera or it may not be used, which is said
 */
export async function watch(video) {
  try {
    if (!navigator.mediaDevices?.getUserMedia) throw new TypeError(CLOSED);
    const seen = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    video.srcObject = seen;
    await video.play();
    say("");
    return seen;
  } catch (error) {
    letGo(video);
    say(REFUSED[error.name] ?? (error.message === CLOSED ? CLOSED : `The camera cannot be used (${error.name}).`));
    return null;
  }
}

/** @param {HTMLVideoElement} video which shows the camera no longer; its light goes out */
export function letGo(video) {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}

/**
 * @param {HTMLVideoElement} video
 * @param {number} [most] pixels of the longer side
 * @returns {Promise<File | null>} what the camera sees now, as JPEG; nothing before it sees anything
 */
export async function capture(video, most = Infinity) {
  if (!video.videoWidth) return null;
  const scale = Math.min(most / Math.max(video.videoWidth, video.videoHeight), 1);
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(scale * video.videoWidth);
  canvas.height = Math.round(scale * video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  const contents = await new Promise((done) => canvas.toBlob(done, "image/jpeg", QUALITY));
  return contents && new File([contents], "camera.jpg", { type: "image/jpeg" });
}

/** @param {(files: File[]) => void} take called with the picture */
export function offerCamera(take) {
  const phone = document.getElementById("camera");
  const touched = matchMedia("(pointer: coarse)").matches;
  document.getElementById("take").addEventListener("click", async () => {
    if (touched) phone.click();
    else if (await watch(finder)) dialog.showModal();
  });
  phone.addEventListener("change", () => {
    if (phone.files.length) take([...phone.files]);
    phone.value = "";
  });
  document.getElementById("shutter").addEventListener("click", async () => {
    const picture = await capture(finder);
    dialog.close();
    if (picture) take([picture]);
  });
  document.getElementById("no-picture").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => letGo(finder));
}
