/** How far a sweep is, in numbers and in a word for each state of a configuration. */

import { h } from "../dom.js";
import { number } from "../format.js";

const OF = { waiting: "queued", running: "live running", paused: "paused", trained: "succeeded", stopped: "cancelled", failed: "failed" };
const MEANING = {
  waiting: "has not begun",
  running: "trains now",
  paused: "may yet train on",
  trained: "took all its steps",
  stopped: "was not worth more steps",
  failed: "did not work",
};

/** Configurations that were made, of those that may be. */
export const counted = (sweep) => `${number(sweep.progress?.trials?.created ?? 0)} of ${mostOf(sweep)}`;

/** A grid has as many as it has; the others end with `trials`. */
export function mostOf(sweep) {
  const { trials, algorithm } = sweep.spec.tune;
  return algorithm.kind === "grid" ? `at most ${number(trials)}` : number(trials);
}

export function stateOfTrial(trial) {
  return h("span", { class: `state ${OF[trial.state]}`, title: trial.reason ?? MEANING[trial.state] }, trial.state);
}
