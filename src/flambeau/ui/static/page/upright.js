/** A picture as the model sees it: upright. Browsers turn a JPEG and a PNG by what EXIF says, and not all of them a WebP;
 * boxes and masks lie on the picture that was turned.
 */

/** By EXIF orientation (CIPA DC-008, 4.6.4): the canvas' transformation, with the width and height of the file. */
const TURNS = {
  2: (w, h) => [-1, 0, 0, 1, w, 0],
  3: (w, h) => [-1, 0, 0, -1, w, h],
  4: (w, h) => [1, 0, 0, -1, 0, h],
  5: (w, h) => [0, 1, 1, 0, 0, 0],
  6: (w, h) => [0, 1, -1, 0, h, 0],
  7: (w, h) => [0, -1, -1, 0, h, w],
  8: (w, h) => [0, -1, 1, 0, 0, w],
};
const LYING = 5; // from here on width and height change places
const ORIENTATION = 0x0112;
const MOST_CHUNKS = 10_000;

/**
 * @param {Blob} picture
 * @returns {Promise<Blob>} the same, or what a browser shows upright in any case
 */
export async function upright(picture) {
  if (!/^RIFF....WEBP$/s.test(await textOf(picture.slice(0, 12)))) return picture;
  const view = new DataView(await picture.arrayBuffer());
  const place = exifIn(view);
  const orientation = place ? orientationAt(view, place) : 1;
  if (!(orientation in TURNS)) return picture;
  for (const [index, letter] of [..."JUNK"].entries()) view.setUint8(place + index, letter.charCodeAt(0)); // no browser turns it now
  const image = await createImageBitmap(new Blob([view.buffer], { type: "image/webp" }));
  const { width, height } = image;
  const size = orientation < LYING ? { width, height } : { width: height, height: width };
  const canvas = Object.assign(document.createElement("canvas"), size);
  const context = canvas.getContext("2d");
  context.setTransform(...TURNS[orientation](width, height));
  context.drawImage(image, 0, 0);
  image.close();
  return new Promise((done, fail) => canvas.toBlob((blob) => (blob ? done(blob) : fail(new Error("too large"))), "image/webp", 0.95));
}

async function textOf(blob) {
  return String.fromCharCode(...new Uint8Array(await blob.arrayBuffer()));
}

/** Where the chunk with EXIF's data begins; 0 for none. */
function exifIn(view) {
  for (let at = 12, count = 0; at + 8 <= view.byteLength && count < MOST_CHUNKS; count += 1) {
    if (view.getUint32(at) === 0x45584946) return at; // "EXIF"
    const length = view.getUint32(at + 4, true);
    at += 8 + length + (length & 1);
  }
  return 0;
}

/** The orientation in the chunk at that place; 1 where there is none, or it is damaged. */
function orientationAt(view, place) {
  try {
    const body = new DataView(view.buffer, place + 8, view.getUint32(place + 4, true));
    const start = body.getUint32(0) === 0x45786966 ? 6 : 0; // "Exif" and two zeros, which some writers put before it
    const little = body.getUint16(start) === 0x4949;
    const first = start + body.getUint32(start + 4, little);
    for (let entry = 0; entry < body.getUint16(first, little); entry += 1) {
      const at = first + 2 + 12 * entry;
      if (body.getUint16(at, little) === ORIENTATION) return body.getUint16(at + 8, little);
    }
  } catch {
    // the file ends before its data
  }
  return 1;
}
