/** What can be asked of a job or a sweep in its state: pause, resume, resize, cancel, kill. */

import { h, say } from "../dom.js";
import { confirm } from "../key.js";
import { post } from "../rest.js";
import { LIVE, TERMINAL } from "./state.js";

const PLACES = { job: "/v1/jobs", sweep: "/v1/sweeps" };
const place = (job) => `${PLACES[job.kind]}/${job.id}`;

export function verbs(board) {
  const { job } = board;
  if (TERMINAL.has(job.state)) return [h("a", { class: "button small", href: `#/submit?from=${job.id}` }, `New ${job.kind} from this`)];
  const stopping = job.state === "stopping";
  const button = (text, act, attributes = {}) => h("button", { type: "button", class: `small ${attributes.class ?? ""}`, disabled: attributes.disabled, onclick: act }, text);
  return [
    job.state === "paused"
      ? button("Resume", () => ask(board, `${place(job)}/resume`, "Resumed: it waits for room."))
      : button("Pause", () => ask(board, `${place(job)}/pause`, "It saves a checkpoint and stops."), { disabled: stopping }),
    job.kind === "job" ? button("Resize", () => resize(board), { disabled: stopping }) : null,
    button("Cancel", () => cancel(board), { disabled: stopping, class: "danger" }),
    stopping && LIVE.has(job.state) ? button("Kill", () => kill(board), { class: "danger" }) : null,
  ];
}

async function ask(board, path, said, body) {
  try {
    board.job = await post(path, body);
    say(said);
  } catch (error) {
    say(error.message, "wrong");
  }
  await board.refresh();
}

async function cancel(board) {
  const { job } = board;
  const after = job.kind === "job" ? " A new job can be forked from the checkpoint." : "";
  const sure = await confirm(`Cancel ${job.name}?`, `It saves a checkpoint and stops for good.${after}`, `Cancel the ${job.kind}`);
  if (sure) await ask(board, `${place(job)}/cancel`, "It saves a checkpoint and stops for good.");
}

async function kill(board) {
  const { job } = board;
  const sure = await confirm(`Kill ${job.name}?`, "It is ended at once, without a last checkpoint.", `Kill the ${job.kind}`);
  if (sure) await ask(board, `${place(job)}/kill`, "It is ended at once.");
}

async function resize(board) {
  const { min, max } = board.job.workers;
  const field = (name, text, value) => h("label", { class: "field" }, text, h("input", { type: "number", name, min: 1, max: 65536, required: true, value }));
  const given = await confirm(`Resize ${board.job.name}`, "How many workers it may have from now on. Model and results stay the same to the bit.", "Resize", [
    h("div", { class: "row" }, field("min", "Fewest", min), field("max", "Most", max)),
  ]);
  if (given) await ask(board, `/v1/jobs/${board.id}/resize`, "Asked for; the supervisor grants what there is room for.", { workers: { min: Number(given.min), max: Number(given.max) } });
}
