/** A small line chart in SVG, with its values in words below it, and those under the pointer while it is there. */

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 600;
const HEIGHT = 160;

/** @typedef {{name: string, kind: string, value: (figures: any) => number | null}} Line `kind` is its CSS class */

export class Chart {
  /**
   * @param {HTMLElement} figure with `.plot` and `.legend`
   * @param {Line[]} lines
   * @param {(value: number) => string} inWords a value with its unit
   * @param {number} [least] how high the chart is at least
   */
  constructor(figure, lines, inWords, least = 1) {
    this.figure = figure;
    this.lines = lines;
    this.inWords = inWords;
    this.least = least;
    this.history = [];
    this.pointed = null;
    this.svg = made("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.title = figure.querySelector("h2").textContent;
    this.svg.setAttribute("aria-label", `${this.title}: nothing yet`);
    this.labels = ["high", "middle", "past", "now"].map(label);
    this.labels[3].textContent = "now";
    figure.querySelector(".plot").append(this.svg, ...this.labels);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.point(null));
  }

  /** @param {{at: number}[]} history oldest first @param {number} span the seconds that are shown, up to the newest */
  draw(history, span) {
    this.span = span;
    const shown = history.filter(({ at }) => at >= history.at(-1).at - span);
    this.history = shown;
    const known = this.lines.flatMap(({ value }) => shown.map(value)).filter(Number.isFinite);
    this.top = roundUp(Math.max(...known, this.least));
    this.labels[0].textContent = this.inWords(this.top);
    this.labels[1].textContent = this.inWords(this.top / 2);
    this.labels[2].textContent = span < 120 ? `${Math.round(span)} s ago` : `${Math.round(span / 60)} min ago`;
    this.refresh();
  }

  point(event) {
    if (!this.history.length) return;
    if (event) {
      const box = this.svg.getBoundingClientRect();
      const at = this.history.at(-1).at - this.span * (1 - (event.clientX - box.left) / box.width);
      const far = (figures) => Math.abs(figures.at - at);
      this.pointed = this.history.reduce((best, each) => (far(each) < far(best) ? each : best));
    } else {
      this.pointed = null;
    }
    this.refresh();
  }

  refresh() {
    const grid = [0, 0.5, 1].map((share) => made("path", { class: "grid", d: `M0 ${y(share)}H${WIDTH}` }));
    const paths = this.lines.map(({ kind, value }) => made("path", { class: `line ${kind}`, d: this.path(value) }));
    const [first] = this.lines;
    const area = made("path", { class: `area ${first.kind}`, d: this.area(first.value) });
    const cursor = this.pointed ? [made("path", { class: "cursor", d: `M${this.x(this.pointed)} 0V${HEIGHT}` })] : [];
    this.svg.replaceChildren(area, ...grid, ...paths, ...cursor);
    this.tell(this.pointed ?? this.history.at(-1));
  }

  tell(figures) {
    const entries = this.lines.map(({ name, kind, value }) => [name, kind, worded(value(figures), this.inWords)]);
    this.svg.setAttribute("aria-label", `${this.title}: ${entries.map(([name, , text]) => `${name} ${text}`).join(", ")}`);
    this.figure.querySelector(".legend").replaceChildren(...entries.map(legendEntry));
  }

  path(value) {
    let drawing = false;
    const steps = this.history.map((figures) => {
      const height = value(figures);
      const step = height === null ? "" : `${drawing ? "L" : "M"}${this.x(figures)} ${y(height / this.top)}`;
      drawing = height !== null;
      return step;
    });
    return steps.join("");
  }

  /** The first line with what lies below it, where it is known throughout. */
  area(value) {
    const line = this.path(value);
    if (!line || line.lastIndexOf("M") > 0) return "";
    const known = this.history.filter((figures) => value(figures) !== null);
    return `${line}L${this.x(known.at(-1))} ${HEIGHT}L${this.x(known[0])} ${HEIGHT}Z`;
  }

  x(figures) {
    return (WIDTH * (1 - (this.history.at(-1).at - figures.at) / this.span)).toFixed(1);
  }
}

function y(share) {
  return (HEIGHT - 1 - share * (HEIGHT - 2)).toFixed(1);
}

/** The next of 1, 2, 5, 10, 20, … */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * (1 - 1e-9));
}

function label(place) {
  const element = document.createElement("span");
  element.className = place;
  return element;
}

function worded(value, inWords) {
  return value === null ? "–" : inWords(value);
}

function legendEntry([name, kind, text]) {
  const entry = document.createElement("span");
  const value = document.createElement("b");
  const dot = document.createElement("i");
  dot.className = `dot ${kind}`;
  value.textContent = text;
  entry.append(dot, `${name} `, value);
  return entry;
}

function made(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  return element;
}
