/** A picture with the boxes that were found in it, as a file of its own. */

/**
 * @param {HTMLImageElement} image what was sent, as the page shows it
 * @param {SVGElement} outlines the boxes, in pixels of the picture
 * @returns {Promise<Blob>} a PNG file of the picture's own size
 */
export async function drawn(image, outlines) {
  const { width, height } = outlines.viewBox.baseVal;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, width, height);
  const scale = Math.max(width / 900, 1);
  context.lineWidth = 3 * scale;
  for (const shape of outlines.querySelectorAll("rect")) {
    context.strokeStyle = getComputedStyle(shape).color;
    const [x, y, wide, high] = ["x", "y", "width", "height"].map((name) => Number(shape.getAttribute(name)));
    context.strokeRect(x, y, wide, high);
  }
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}
