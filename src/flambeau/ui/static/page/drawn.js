/** A picture with what was found in it, as a file of its own. */

/**
 * @param {Element} picture where the picture is, with its masks, and with its boxes and points in its pixels
 * @returns {Promise<Blob>} a PNG file of the picture's own size, as the page shows it
 */
export async function drawn(picture) {
  const outlines = picture.querySelector(".outlines");
  const { width, height } = outlines.viewBox.baseVal;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.drawImage(picture.querySelector("img"), 0, 0, width, height);
  const masks = picture.querySelector(".masks");
  if (masks) {
    Object.assign(context, { globalAlpha: Number(getComputedStyle(masks).opacity), imageSmoothingEnabled: false });
    for (const mask of masks.querySelectorAll("img:not([hidden])")) context.drawImage(mask, 0, 0, width, height);
    context.globalAlpha = 1;
  }
  const scale = Math.max(width / 900, 1);
  context.lineWidth = 3 * scale;
  for (const shape of outlines.querySelectorAll("rect")) {
    context.strokeStyle = getComputedStyle(shape).color;
    const [x, y, wide, high] = ["x", "y", "width", "height"].map((name) => Number(shape.getAttribute(name)));
    context.strokeRect(x, y, wide, high);
  }
  for (const point of outlines.querySelectorAll("path")) {
    const { x, y } = point.getPointAtLength(0);
    context.fillStyle = getComputedStyle(point).color;
    context.beginPath(); // a line without a length, as the page has it, is not drawn by every browser's canvas
    context.arc(x, y, 4 * scale, 0, 2 * Math.PI);
    context.fill();
  }
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}
