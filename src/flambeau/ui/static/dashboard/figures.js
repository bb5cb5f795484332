/** From what a server counts to what people read: rates, quantiles, means. Pure functions over snapshots. */

import { NAMES } from "./names.js";

/** @typedef {{at: number, samples: Map<string, import("./exposition.js").Sample[]>}} Snapshot `at` is in seconds */

const STAGES = ["queue", "preprocess", "inference", "postprocess", "total"];

/**
 * @param {Snapshot} earlier @param {Snapshot} later
 * @param {string} model a name; empty for all models
 * @returns what happened between the two, and what was so at the later; `null` where nothing was measured
 */
export function compare(earlier, later, model) {
  const wanted = (labels) => !model || labels.model === model;
  const grown = (name, and = () => true) => growth(earlier, later, name, (labels) => wanted(labels) && and(labels));
  const held = (name, and = () => true) => values(later, name).filter(({ labels }) => wanted(labels) && and(labels));
  const total = (name, and) => sum(held(name, and)) ?? null;
  const seconds = later.at - earlier.at;
  const perSecond = (first) => (sum(grown(NAMES.requests, ({ status }) => first.includes(status[0]))) ?? 0) / seconds;
  const spent = Object.fromEntries(STAGES.map((stage) => [stage, mean(grown, NAMES.seconds, (labels) => labels.stage === stage)]));
  const timed = values(later, `${NAMES.seconds}_count`).some(({ labels }) => labels.stage === "total") ? "total" : "inference";
  const buckets = bucketsOf(grown(`${NAMES.seconds}_bucket`, ({ stage }) => stage === timed));
  return {
    at: later.at,
    answered: perSecond("123"),
    refused: perSecond("4"),
    failed: perSecond("5"),
    timed,
    median: milliseconds(quantile(buckets, 0.5)),
    slowest: milliseconds(quantile(buckets, 0.99)),
    spent: new Map(Object.entries(spent).filter(([, each]) => each !== null).map(([stage, each]) => [stage, 1000 * each])),
    batch: mean(grown, NAMES.batchSize),
    waiting: total(NAMES.queueItems),
    waitingBytes: total(NAMES.queueBytes),
    workers: total(NAMES.workers),
    restarts: total(NAMES.restarts),
    memory: total(NAMES.memory),
  };
}

/** @returns {Array<{title: string, ready: boolean, states: [string, number][], nodes: [string, number][], restarts: [string, number][], memory: number[]}>} a row for each version that is loaded */
export function perVersion(snapshot) {
  const loaded = values(snapshot, NAMES.ready);
  return loaded.map(({ labels: { model, version }, value: ready }) => {
    const own = ({ labels }) => labels.model === model && (labels.version ?? version) === version;
    const of = (name) => values(snapshot, name).filter(own);
    const alone = loaded.filter(({ labels }) => labels.model === model).length === 1;
    return {
      title: alone ? model : `${model} ${version}`,
      ready: ready === 1,
      states: of(NAMES.workers).map(({ labels, value }) => [labels.state, value]),
      nodes: of(NAMES.nodes).map(({ labels, value }) => [`on ${labels.node}`, value]),
      restarts: of(NAMES.restarts).map(({ labels, value }) => [labels.reason, value]),
      memory: of(NAMES.memory).map(({ value }) => value),
    };
  });
}

/** Whether anything was asked for since the start. */
export function asked(snapshot) {
  return values(snapshot, NAMES.requests).some(({ value }) => value > 0);
}

/** @returns {[string, number][]} how often requests were refused since the start, by code, the commonest first */
export function refusals(snapshot, model) {
  const counts = new Map();
  for (const { labels, value } of values(snapshot, NAMES.rejections)) {
    if (value && (!model || labels.model === model)) counts.set(labels.code, (counts.get(labels.code) ?? 0) + value);
  }
  return [...counts].sort(([, one], [, other]) => other - one);
}

/**
 * @param {[number, number][]} buckets upper bounds, rising, with how many lie at or below each
 * @param {number} share from 0 to 1
 * @returns {number | null} as Prometheus' `histogram_quantile`: straight lines within a bucket; `null` without any
 */
export function quantile(buckets, share) {
  const count = buckets.at(-1)?.[1] ?? 0;
  if (!count) return null;
  const rank = share * count;
  const index = buckets.findIndex(([, below]) => below >= rank);
  const [bound, below] = buckets[index];
  const [start, before] = index ? buckets[index - 1] : [0, 0];
  return Number.isFinite(bound) ? start + ((bound - start) * (rank - before)) / (below - before) : start;
}

function values(snapshot, name) {
  return snapshot.samples.get(name) ?? [];
}

/** By how much counters grew. One that shrank was started anew with its server. */
function growth(earlier, later, name, wanted) {
  const before = new Map(values(earlier, name).map(({ labels, value }) => [JSON.stringify(labels), value]));
  return values(later, name)
    .filter(({ labels }) => wanted(labels))
    .map(({ labels, value }) => {
      const past = before.get(JSON.stringify(labels)) ?? 0;
      return { labels, value: value >= past ? value - past : value };
    });
}

function sum(samples) {
  return samples.length ? samples.reduce((whole, { value }) => whole + value, 0) : undefined;
}

function mean(grown, name, and) {
  const count = sum(grown(`${name}_count`, and));
  return count ? sum(grown(`${name}_sum`, and)) / count : null;
}

function bucketsOf(samples) {
  const below = new Map();
  for (const { labels, value } of samples) {
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    below.set(bound, (below.get(bound) ?? 0) + value);
  }
  return [...below].sort(([one], [other]) => one - other);
}

function milliseconds(seconds) {
  return seconds === null ? null : 1000 * seconds;
}
