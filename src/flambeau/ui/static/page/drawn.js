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
  Object.assign(context, { lineWidth: 8 * scale, lineCap: "round" });
  for (const point of outlines.querySelectorAll("path")) {
    context.strokeStyle = getComputedStyle(point).color;
    context.stroke(new Path2D(point.getAttribute("d")));
  }
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}
