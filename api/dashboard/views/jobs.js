/** All jobs, the newest first, with those that wait; looked at again every few seconds. */

import { empty, fill, h, heading, panel, table } from "../dom.js";
import { ago, duration, number, share, when } from "../format.js";
import { progressOf, stateOf } from "../job/state.js";
import { items } from "../rest.js";

const EVERY = 3000; // milliseconds
const MOST = 400; // jobs that are shown
const LIVE = ["starting", "running", "recovering", "resizing", "stopping"];
const GROUPS = {
  All: [],
  Live: LIVE,
  Waiting: ["queued", "paused"],
  Done: ["succeeded"],
  Failed: ["failed", "cancelled"],
};

export async function show(place, { query, signal }) {
  let group = query.get("show") ?? "All";
  let text = "";
  let found = await items("/v1/jobs", {}, MOST, signal);
  const chosen = new Set();

  const compare = h("button", { type: "button", class: "small", onclick: () => (location.hash = `#/compare?a=${[...chosen][0]}&b=${[...chosen][1]}`) }, "Compare");
  const name = h("input", { type: "search", placeholder: "Name or label", "aria-label": "Filter by name or label", oninput: (event) => { text = event.target.value.toLowerCase(); draw(); } });
  const groups = h("div", { class: "segments", role: "group", "aria-label": "Which jobs" });
  const queue = h("div", {});
  const list = h("div", {});

  function matches(job) {
    const wanted = GROUPS[group] ?? [];
    const said = `${job.name} ${job.id} ${Object.entries(job.labels).map((pair) => pair.join(":")).join(" ")}`.toLowerCase();
    return (!wanted.length || wanted.includes(job.state)) && said.includes(text);
  }

  function draw() {
    fill(groups, Object.keys(GROUPS).map((one) => h("button", { type: "button", "aria-pressed": String(one === group), onclick: () => { group = one; draw(); } }, one)));
    const rows = found.filter(matches);
    compare.disabled = chosen.size !== 2;
    compare.title = chosen.size === 2 ? "" : "Choose two jobs that succeeded";
    const focus = document.activeElement?.dataset?.job;
    const waiting = queued(found);
    queue.hidden = !waiting;
    fill(queue, waiting);
    fill(list, rows.length ? jobs(rows, chosen, draw) : empty(found.length ? "No job matches." : "No jobs yet.", !found.length && h("a", { class: "button primary", href: "#/submit" }, "Submit the first one")));
    if (focus) list.querySelector(`[data-job="${focus}"]`)?.focus();
  }

  fill(place, h("div", { class: "stack" }, heading("Jobs", groups, name, compare), queue, panel("All jobs", { class: "flush" }, list)));
  draw();
  const timer = setInterval(async () => {
    if (document.hidden) return;
    try {
      found = await items("/v1/jobs", {}, MOST, signal);
      place.classList.remove("lost");
      if (!signal.aborted) draw();
    } catch {
      place.classList.add("lost");
    }
  }, EVERY);
  signal.addEventListener("abort", () => clearInterval(timer));
}

function queued(found) {
  const waiting = found.filter((job) => job.state === "queued").sort((a, b) => b.priority - a.priority || a.created_at.localeCompare(b.created_at));
  if (!waiting.length) return null;
  return panel(
    "Queue",
    { note: `${waiting.length} waiting, the next one first` },
    h("ol", { class: "row" }, waiting.slice(0, 12).map((job) => h("li", {}, h("a", { href: `#/jobs/${job.id}` }, job.name), h("span", { class: "note" }, ` priority ${job.priority}, ${job.workers.min}–${job.workers.max} workers, ${ago(job.created_at)}`)))),
  );
}

function jobs(rows, chosen, draw) {
  const choose = (job) =>
    h("input", {
      type: "checkbox",
      "aria-label": `Choose ${job.name} to compare`,
      "data-job": job.id,
      checked: chosen.has(job.id),
      disabled: job.state !== "succeeded" || (chosen.size === 2 && !chosen.has(job.id)),
      onchange: (event) => { chosen[event.target.checked ? "add" : "delete"](job.id); draw(); },
    });
  return table(
    "Jobs",
    [
      ["", choose, { class: "nowrap pick" }],
      ["Name", (job) => [h("a", { href: `#/jobs/${job.id}` }, job.name), h("span", { class: "sub mono" }, job.id)], { class: "title" }],
      ["State", stateOf, { class: "nowrap" }],
      ["Progress", progressOf, { class: "wide" }],
      ["Loss", (job) => number(job.progress?.loss), { class: "number" }],
      ["MAP@R", (job) => share(job.result?.metrics?.map_at_r), { class: "number", hint: "of the test split" }],
      ["Workers", (job) => (LIVE.includes(job.state) && job.progress?.workers ? `${job.progress.workers} of ${job.workers.max}` : `${job.workers.min}–${job.workers.max}`), { class: "number" }],
      ["Priority", (job) => number(job.priority), { class: "number" }],
      ["Labels", (job) => Object.entries(job.labels).map(([name, value]) => [h("span", { class: "label" }, `${name}: ${value}`), " "])],
      ["Took", (job) => took(job), { class: "number" }],
      ["Created", (job) => h("span", { title: when(job.created_at) }, ago(job.created_at)), { class: "number" }],
    ],
    rows,
    { class: "cards", row: (job) => (chosen.has(job.id) ? { class: "chosen" } : {}) },
  );
}

function took(job) {
  if (!job.started_at) return "–";
  return duration((new Date(job.finished_at ?? Date.now()) - new Date(job.started_at)) / 1000);
}
