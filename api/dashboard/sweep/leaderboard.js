/** The configurations of a sweep, the best first; a distance to the best that may be chance is said to be. */

import { h, table } from "../dom.js";
import { bytes, duration, number, share, signed, words } from "../format.js";
import { stateOfTrial } from "./state.js";

const VERDICTS = {
  best: ["the best", "good", "no other configuration has a better mean"],
  worse: ["worse", "bad", "significantly so: paired t-test over seeds, Holm's correction, 95 %"],
  "not significant": ["may be chance", "muted", "not to be told from the best by a paired t-test over seeds, at 95 %"],
  "too few seeds": ["may be chance", "muted", "one seed tells nothing of a difference: tune.seeds of 3 or more would"],
};

/** `lit(row)` is called when a row is looked at, with -1 when none is; `fields` are those that vary. */
export function leaderboard(board, rows, { fields, steps, lit }) {
  const columns = [
    ["Configuration", (row) => h("button", { type: "button", class: "small", "aria-label": `Configuration ${board.items[row].configuration}: show its line`, "data-row": board.items[row].configuration, onfocus: () => lit(row), onblur: () => lit(-1) }, `#${board.items[row].configuration}`), { class: "nowrap" }],
    ["State", (row) => stateOfTrial(board.items[row]), { class: "nowrap" }],
    ...fields.map((field) => [field, (row) => said(board.items[row].values[field]), { class: "number" }]),
    [words(board.objective), (row) => score(board.items[row]), { class: "number", hint: "mean over seeds ± standard deviation, on validation classes" }],
    ["Against the best", (row) => difference(board.items[row]), { class: "number", hint: "with its 95 % interval" }],
    ["Verdict", (row) => verdict(board.items[row]), { class: "nowrap" }],
    ["Steps", (row) => [`${number(board.items[row].step)} / ${number(steps)}`, h("span", { class: "sub" }, duration(board.items[row].seconds))], { class: "number", hint: "of a trial, and what they took" }],
    ...(board.cost ? [["Model", (row) => bytes(board.items[row].bytes), { class: "number" }], ["Front", (row) => (board.items[row].on_front ? h("strong", { class: "good" }, "on it") : "–"), { hint: `no other is better in both ${words(board.objective)} and ${board.cost}` }]] : []),
  ];
  const attributes = (row) => ({ class: board.items[row].configuration === board.best ? "chosen" : null, onmouseenter: () => lit(row), onmouseleave: () => lit(-1) });
  return table("Configurations, the best first", columns, rows, { class: "cards", row: attributes });
}

function score({ score: mean, deviation, by_seed: seeds }) {
  const count = Object.keys(seeds).length;
  return h("span", { title: Object.entries(seeds).map(([seed, value]) => `seed ${seed}: ${share(value)}`).join(", ") }, share(mean), deviation === null ? null : h("span", { class: "sub" }, `± ${share(deviation)} of ${count}`));
}

function difference({ difference: mean, difference_interval: interval }) {
  if (mean === null) return "–";
  return [signed(mean), h("span", { class: "sub" }, interval.map(signed).join(" to "))];
}

function verdict({ verdict: word, p_value: chance, state }) {
  if (word === null) return h("span", { class: "muted", title: "it did not come as far as the best, and is not compared" }, state === "failed" ? "–" : "not compared");
  const [text, kind, hint] = VERDICTS[word];
  return [h("span", { class: kind, title: hint }, text), chance === null ? null : h("span", { class: "sub" }, `p = ${chance < 0.001 ? "< 0.001" : chance.toFixed(3)}`.replace("= <", "<"))];
}

export const said = (value) => (typeof value === "number" ? number(value) : value === undefined || value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));
