/** Numbers, times and digests as people read them. */

const DIGITS = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const WHOLE = new Intl.NumberFormat("en");
const DATE = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });

/** Four digits, or a dash for nothing. */
export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value !== 0 && Math.abs(value) < 1e-4) return value.toExponential(2);
  return Number.isInteger(value) ? WHOLE.format(value) : DIGITS.format(value);
}

/** A metric between 0 and 1: always four places, so that columns align. */
export const share = (value) => (value === null || value === undefined ? "–" : value.toFixed(4));

/** A change with its sign. */
export const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "±") + Math.abs(value).toFixed(4);

export const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`);

/** Seconds as the two largest units. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 1) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 60) return `${DIGITS.format(Number(seconds.toFixed(1)))} s`;
  const whole = Math.round(seconds);
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => whole >= size);
  const [[large, size], [small, rest]] = units.slice(first, first + 2);
  const left = Math.floor((whole % size) / rest);
  return `${Math.floor(whole / size)} ${large}${left ? ` ${left} ${small}` : ""}`;
}

export const when = (text) => (text ? DATE.format(new Date(text)) : "–");

/** The time of day, for lists of what happened. */
export const clock = (text) => new Date(text).toLocaleTimeString("en", { hourCycle: "h23" });

/** How long ago. */
export function ago(text) {
  const seconds = (Date.now() - new Date(text)) / 1000;
  return seconds < 5 ? "just now" : `${duration(Math.max(0, seconds)).split(" ").slice(0, 2).join(" ")} ago`;
}

export function bytes(count) {
  let value = count;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return `${unit === "B" ? value : value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} TiB`;
}

/** The first letters of a digest or an id. */
export const short = (text, length = 12) => (text ? text.slice(0, length) : "–");

/** A name of snake_case as words. */
export const words = (name) => NAMES[name] ?? name.replaceAll("_", " ");

const NAMES = {
  precision_at_1: "Precision@1",
  r_precision: "R-precision",
  map_at_r: "MAP@R",
  recall_at_1: "Recall@1",
  recall_at_10: "Recall@10",
  recall_at_100: "Recall@100",
  queries: "Queries",
  queries_without_positive: "Queries without a positive",
  nmi: "NMI",
  ami: "AMI",
};
