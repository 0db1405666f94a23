/** One job, or the run of a sweep's winner: its facts and what can be asked of it, over a tab: live, evaluation, spec or files. */

import { fill, h } from "../dom.js";
import { duration, short, when } from "../format.js";
import { showFiles } from "../job/files.js";
import { showLive } from "../job/live.js";
import { showSpec } from "../job/spec.js";
import { stateOf, TERMINAL } from "../job/state.js";
import { verbs } from "../job/verbs.js";
import { follow, get } from "../rest.js";
import { showEvaluation } from "./evaluation.js";

const TABS = { live: ["Live", showLive], evaluation: ["Evaluation", showEvaluation], spec: ["Spec", showSpec], files: ["Files", showFiles] };

export async function show(place, { job: id, tab = "live", signal }) {
  const board = { id, job: await get(`/v1/jobs/${id}`, {}, signal), signal, listeners: new Set() };
  const head = h("div", { class: "stack" });
  const body = h("div", { class: "body" });
  const draw = () => fill(head, title(board), facts(board.job));
  board.refresh = async () => {
    board.job = await get(`/v1/jobs/${id}`, {}, signal);
    draw();
  };
  fill(place, head, tabs(id, tab), body);
  draw();
  follow(`/v1/jobs/${id}/events`, { signal, lost: (lost) => place.classList.toggle("lost", lost), take: (event) => taken(board, event) }).catch((error) => {
    if (!signal.aborted) throw error;
  });
  await TABS[tab][1](body, board);
}

/** Events come in order: what changes the job itself is asked for anew, once for all that came together. */
function taken(board, event) {
  for (const listener of board.listeners) listener(event);
  if (["state", "verb", "membership", "attempt", "evaluation"].includes(event.type)) {
    clearTimeout(board.later);
    board.later = setTimeout(() => board.signal.aborted || board.refresh().catch(() => {}), 200);
  }
}

function title(board) {
  const { job } = board;
  const reason = job.reason && job.state !== "succeeded" && h("p", { class: job.state === "failed" ? "problem" : "advice", role: job.state === "failed" ? "alert" : null }, job.reason.message);
  return [h("div", { class: "heading" }, h("h1", { tabindex: "-1" }, job.name), h("span", { role: "status" }, stateOf(job)), h("div", { class: "beside" }, verbs(board))), reason];
}

function facts(job) {
  const entries = [
    ["Id", h("span", { class: "mono" }, job.id)],
    ["Created", when(job.created_at)],
    ["Took", job.started_at ? duration((new Date(job.finished_at ?? Date.now()) - new Date(job.started_at)) / 1000) : "–"],
    job.kind === "sweep" && ["Winner of", h("a", { href: `#/sweeps/${job.id}` }, "the sweep")],
    [job.kind === "sweep" ? "Trials at once" : "Workers wanted", `${job.workers.min}–${job.workers.max}`],
    ["Attempt", String(job.attempt)],
    ["Priority", String(job.priority)],
    ["Spec", h("span", { class: "mono", title: job.spec_sha256 }, short(job.spec_sha256))],
    job.parent && ["Forked from", h("a", { href: `#/jobs/${job.parent.job}` }, `step ${job.parent.step}`)],
    job.result?.model_sha256 && ["Model", h("span", { class: "mono", title: job.result.model_sha256 }, short(job.result.model_sha256))],
    job.result?.collection && ["Collection", h("a", { href: `#/search?collection=${encodeURIComponent(job.result.collection)}` }, job.result.collection)],
  ].filter(Boolean);
  const labels = Object.entries(job.labels).map(([name, value]) => [h("span", { class: "label" }, `${name}: ${value}`), " "]);
  return h("div", { class: "panel facts-panel" }, h("dl", { class: "facts" }, entries.map(([name, value]) => h("div", { class: name === "Id" || name === "Created" ? "twice" : null }, h("dt", {}, name), h("dd", {}, value))), labels.length ? h("div", { class: "twice" }, h("dt", {}, "Labels"), h("dd", {}, labels)) : null));
}

function tabs(id, current) {
  const path = (name) => `#/jobs/${id}${name === "live" ? "" : `/${name}`}`;
  return h("nav", { class: "tabs", "aria-label": "Of this job" }, Object.entries(TABS).map(([name, [text]]) => h("a", { href: path(name), "aria-current": name === current ? "page" : null }, text)));
}

/** Whether nothing more can happen to it. */
export const over = (job) => TERMINAL.has(job.state);
