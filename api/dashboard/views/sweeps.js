/** Jobs that differ in a few fields of their specs: each a line over these fields and the metrics that it reached. */

import { empty, fill, h, heading, panel, table } from "../dom.js";
import { number, share, short, words } from "../format.js";
import { stateOf } from "../job/state.js";
import { parallel } from "../parallel.js";
import { items } from "../rest.js";

const METRICS = ["recall_at_1", "map_at_r"];
const LEFT_OUT = new Set(["name", "index.collection"]);
const MOST_FIELDS = 8;

export async function show(place, { query, signal }) {
  const jobs = (await items("/v1/jobs", { state: "succeeded" }, 1000, signal)).filter((job) => job.result?.metrics);
  const groups = grouped(jobs);
  if (!groups.size) {
    fill(place, heading("Sweeps"), panel("Jobs side by side", {}, empty("Nothing to see yet: give the jobs of a sweep a label in common, such as sweep:margins. At least two must have succeeded.")));
    return;
  }
  const wanted = query.get("label") ?? [...groups.keys()][0];
  const choose = h("select", { onchange: () => (location.hash = `#/sweeps?label=${encodeURIComponent(choose.value)}`) }, [...groups].map(([label, found]) => h("option", { value: label, selected: label === wanted }, `${label} (${found.length})`)));
  const found = groups.get(wanted) ?? [];
  fill(place, heading("Sweeps", h("label", { class: "row" }, h("span", { class: "note" }, "Jobs labelled"), choose)), h("div", { class: "stack" }, drawn(found, signal)));
}

/** Jobs by label, where at least two have it. */
function grouped(jobs) {
  const found = new Map();
  for (const job of jobs) {
    for (const pair of Object.entries(job.labels)) {
      const label = pair.join(": ");
      found.set(label, [...(found.get(label) ?? []), job]);
    }
  }
  return new Map([...found].filter(([, members]) => members.length > 1).sort((a, b) => b[1].length - a[1].length));
}

function drawn(jobs, signal) {
  const specs = jobs.map((job) => flat(job.spec));
  const fields = [...new Set(specs.flatMap((spec) => Object.keys(spec)))].filter((field) => !LEFT_OUT.has(field) && varied(specs, field));
  const shown = fields.slice(0, MOST_FIELDS);
  const columns = [
    ...shown.map((field) => ({ name: field.split(".").slice(-2).join("."), values: specs.map((spec) => spec[field] ?? null) })),
    ...METRICS.map((name) => ({ name: words(name), values: jobs.map((job) => job.result.metrics[name] ?? null) })),
  ];
  const list = h("div", {});
  const chart = parallel({ title: `${jobs.length} jobs over ${shown.join(", ")} and ${METRICS.map(words).join(", ")}`, columns, changed: draw, signal });

  function draw() {
    const kept = chart.kept().sort((a, b) => jobs[b].result.metrics.map_at_r - jobs[a].result.metrics.map_at_r);
    const rest = [
      ["Job", (row) => [h("a", { href: `#/jobs/${jobs[row].id}`, onfocus: () => chart.lit(row), onblur: () => chart.lit(-1) }, jobs[row].name), h("span", { class: "sub mono" }, short(jobs[row].id, 14))], { class: "title" }],
      ["State", (row) => stateOf(jobs[row])],
      ...shown.map((field) => [field, (row) => said(specs[row][field]), { class: "number" }]),
      ...METRICS.map((name) => [words(name), (row) => share(jobs[row].result.metrics[name]), { class: "number" }]),
    ];
    const light = (row) => ({ onmouseenter: () => chart.lit(row), onmouseleave: () => chart.lit(-1) });
    fill(list, kept.length ? table("Jobs, the best first", rest, kept, { class: "cards", row: light }) : empty("No job lies within all ranges."));
  }

  draw();
  return [
    panel("Fields and metrics", { note: `${number(jobs.length)} jobs; drag along an axis to keep a range, click it to let go` }, h("div", { class: "scroll" }, chart.element)),
    panel("Jobs", { note: "the best first" }, list),
  ];
}

/** Whether jobs that have the field have different values of it: one that only some have follows from another. */
const varied = (specs, field) => new Set(specs.map((spec) => spec[field]).filter((value) => value !== undefined && value !== null)).size > 1;

/** A nested document as one of dotted names. */
function flat(document, prefix = "") {
  return Object.fromEntries(
    Object.entries(document).flatMap(([name, value]) => (value !== null && typeof value === "object" && !Array.isArray(value) ? Object.entries(flat(value, `${prefix}${name}.`)) : [[`${prefix}${name}`, Array.isArray(value) ? JSON.stringify(value) : value]])),
  );
}

const said = (value) => (typeof value === "number" ? number(value) : value === undefined || value === null ? "–" : String(value));
