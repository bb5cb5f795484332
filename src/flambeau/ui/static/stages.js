/** Where the time of a prediction went: `Server-Timing` to numbers, and numbers to a bar. */

const STAGES = ["queue", "preprocess", "inference", "postprocess"];

/**
 * @param {string | null} header the value of `Server-Timing`
 * @returns {Map<string, number>} milliseconds by name, in the order of the header
 */
export function readTiming(header) {
  const found = new Map();
  for (const entry of (header ?? "").split(",")) {
    const [name, ...parameters] = entry.split(";").map((part) => part.trim());
    const duration = parameters.find((parameter) => parameter.startsWith("dur="));
    if (name && duration) found.set(name, Number(duration.slice(4)));
  }
  return found;
}

/**
 * Draw a bar of the stages, and their names with milliseconds below it.
 * @param {Element} place an element with `.stages` (an SVG), `.whole` and `.parts`
 * @param {Map<string, number>} spent milliseconds by stage; `total` is more than the sum where there was other work
 */
export function showStages(place, spent) {
  const known = STAGES.filter((stage) => spent.has(stage)).map((stage) => [stage, spent.get(stage)]);
  const sum = known.reduce((before, [, milliseconds]) => before + milliseconds, 0);
  const whole = Math.max(spent.get("total") ?? sum, sum);
  const svg = place.querySelector(".stages");
  const parts = place.querySelector(".parts");
  svg.replaceChildren();
  parts.replaceChildren();
  let start = 0;
  for (const [stage, milliseconds] of known) {
    const share = whole ? (100 * milliseconds) / whole : 0;
    svg.append(segment(stage, start, share));
    parts.append(part(stage, milliseconds));
    start += share;
  }
  if (whole - sum > whole / 20) parts.append(part("reading and sending", whole - sum, "rest"));
  place.querySelector(".whole").textContent = `${inWords(whole)} ms`;
}

function segment(stage, start, share) {
  const rectangle = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  rectangle.setAttribute("class", stage);
  rectangle.setAttribute("x", `${start}%`);
  rectangle.setAttribute("width", `${share}%`);
  rectangle.setAttribute("height", "100%");
  return rectangle;
}

function part(stage, milliseconds, kind = stage) {
  const dot = document.createElement("i");
  dot.className = `dot ${kind}`;
  const item = document.createElement("span");
  item.className = "part";
  item.append(dot, `${stage} ${inWords(milliseconds)} ms`);
  return item;
}

function inWords(milliseconds) {
  return milliseconds >= 100 ? milliseconds.toFixed(0) : milliseconds.toFixed(1);
}
