/** The leaderboard of a sweep -> axes of parallel coordinates: the fields that vary, what a trial took, what it reached. */

import { words } from "../format.js";
import { parallel } from "../parallel.js";
import { said } from "./leaderboard.js";

const MOST_FIELDS = 8;

/** Fields of which configurations that have them have different values, all of them where there is one configuration. */
export function fieldsOf(trials) {
  const names = [...new Set(trials.flatMap((trial) => Object.keys(trial.values)))].sort();
  const varied = names.filter((name) => new Set(trials.filter((trial) => name in trial.values).map((trial) => said(trial.values[name]))).size > 1);
  return (varied.length ? varied : names).slice(0, MOST_FIELDS);
}

/** A chart that `set(board)` draws anew; those rows that lie in all ranges are `kept()`. */
export function coordinates({ changed, signal }) {
  const chart = parallel({ title: "Configurations over their fields and scores", changed, signal });
  return { ...chart, set: (board) => chart.set(columns(board)) };
}

function columns({ items, cost, objective }) {
  const value = (one) => (one === undefined || typeof one === "number" ? (one ?? null) : said(one));
  const steps = new Set(items.map((trial) => trial.step)).size > 1;
  return [
    ...fieldsOf(items).map((name) => ({ name: name.split(".").slice(-2).join("."), values: items.map((trial) => value(trial.values[name])) })),
    ...(steps ? [{ name: "steps", values: items.map((trial) => trial.step) }] : []),
    ...(cost ? [{ name: cost, values: items.map((trial) => (trial.score === null ? null : trial[cost])) }] : []),
    { name: words(objective), values: items.map((trial) => trial.score) },
  ];
}
