/** Answers as a table of comma-separated values (RFC 4180): a row for each item, or for each thing found in it. */

import { json } from "../exact.js";

/**
 * @typedef {object} Entry
 * @property {string} source the name of the file, or the question
 * @property {any} [body] the JSON of the answer
 * @property {string} [error] a sentence, where there is no answer
 */

const MOST_COLUMNS = 4096; // numbers of one answer; more are one cell of JSON

/** The rows of each task's answer. Those that are not here have a column for each number. */
const ROWS = {
  classification: ({ class_name: name, predictions }) => [{ answer: name ?? "", ...ranked(predictions) }],
  "multi-label": ({ labels, predictions }) => [
    { labels: labels.map(({ label }) => label).join("; "), ...ranked(predictions) },
  ],
  embedding: ({ embedding }) => [columns("", embedding)],
};

/**
 * @param {string} task
 * @param {Entry[]} entries
 * @returns {string} the table, with a line of names; each line ends in CR LF
 */
export function asTable(task, entries) {
  const rows = entries.flatMap(({ source, body, error }) => {
    const found = body ? (ROWS[task] ?? others)(body) : [{}];
    return (found.length ? found : [{}]).map((row) => ({ item: source, ...row, error: error ?? "" }));
  });
  const names = [...new Set(rows.flatMap(Object.keys))].filter((name) => name !== "error");
  if (entries.some(({ error }) => error)) names.push("error");
  return [names, ...rows.map((row) => names.map((name) => row[name]))]
    .map((cells) => `${cells.map(cell).join(",")}\r\n`)
    .join("");
}

function ranked(predictions) {
  return Object.fromEntries(
    predictions.flatMap(({ class_name: name, probability }, place) => [
      [`class_${place + 1}`, name],
      [`probability_${place + 1}`, probability],
    ]),
  );
}

/** Whatever was found, one row for each; or what the answer has, beside its pictures. */
function others(body) {
  if (Array.isArray(body.predictions)) return body.predictions.map((each) => columns("", each));
  return [columns("", body)];
}

/** Numbers in lists and objects, each in a column that is named for its place: `box.xmin`, `output.3`. */
function columns(name, value) {
  const found = {};
  const add = (place, each) => {
    if (typeof each !== "object" || each === null) found[place || "answer"] = each;
    else for (const [key, inner] of Object.entries(each)) add(place ? `${place}.${key}` : key, inner);
  };
  add(name, withoutFiles(value));
  return Object.keys(found).length <= MOST_COLUMNS ? found : { answer: json(value) };
}

/** Masks and pictures have files of their own: in a table they would be pages of letters. */
function withoutFiles(value) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
  return Object.fromEntries(Object.entries(value).filter(([name]) => name !== "mask" && name !== "picture"));
}

/** A cell; a text that a spreadsheet would run as a formula is kept from it by an apostrophe. */
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "string") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
