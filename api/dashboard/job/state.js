/** A job's state and progress as small marks. */

import { h } from "../dom.js";

export const LIVE = new Set(["starting", "running", "recovering", "resizing", "stopping"]);
export const TERMINAL = new Set(["succeeded", "failed", "cancelled"]);

export function stateOf(job) {
  return h("span", { class: `state ${LIVE.has(job.state) ? "live" : ""} ${job.state}`, title: job.reason?.message ?? "" }, job.state);
}

export function progressOf(job) {
  const { step = 0, steps = job.spec.train.steps } = job.progress ?? {};
  return h(
    "div",
    { class: "progress" },
    h("progress", { max: steps, value: step, "aria-label": `step ${step} of ${steps}` }),
    h("span", { class: "note" }, `${step} / ${steps}`),
  );
}
