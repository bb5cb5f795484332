/** Numbers for people. */

/** @param {number} value */
export function plain(value) {
  if (value >= 1000) return Math.round(value).toLocaleString("en");
  return value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);
}

/** @param {number} milliseconds */
export function time(milliseconds) {
  return milliseconds >= 1000 ? `${plain(milliseconds / 1000)} s` : `${plain(milliseconds)} ms`;
}

/** @param {number} bytes */
export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = bytes >= 1 ? Math.min(Math.floor(Math.log10(bytes) / 3), 4) : 0;
  return `${plain(bytes / 1000 ** power)} ${units[power]}`;
}
