/** What was put into the form of a model that takes no pictures: one item, ready to be sent. */

/**
 * @param {HTMLFormElement} form
 * @returns {{item?: File | {input: any}, error?: string}} a file goes before JSON text, and that before single numbers
 */
export function readFields(form) {
  const file = form.elements.file?.files[0];
  if (file) return { item: file };
  if (form.dataset.asks === "sound") return { error: "No sound file was chosen." };
  if (form.dataset.asks === "text") {
    const written = form.elements.input.value;
    return written.trim() ? { item: { input: written } } : { error: "No text was written." };
  }
  const text = form.elements.input.value.trim();
  if (text) {
    try {
      return { item: { input: JSON.parse(text) } };
    } catch (error) {
      return { error: `This is not JSON: ${error.message}.` };
    }
  }
  const numbers = [...form.querySelectorAll("[name=number]")].map((field) => field.valueAsNumber);
  if (!numbers.length) return { error: "No input was written." };
  if (numbers.some(Number.isNaN)) return { error: "A number is missing: write one into every field." };
  return { item: { input: nested(numbers, JSON.parse(form.dataset.shape)) } };
}

/** The numbers as lists in lists, in row-major order; without a shape the number itself. */
function nested(numbers, shape) {
  if (!shape.length) return numbers[0];
  let rows = numbers;
  for (const size of shape.slice(1).reverse()) {
    rows = Array.from({ length: rows.length / size }, (_, row) => rows.slice(row * size, (row + 1) * size));
  }
  return rows;
}
