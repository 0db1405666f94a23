/** A spec to write, to look at and to submit, as a job or as a sweep: mistakes are named with their lines. */

import { empty, fill, h, heading, panel, say, table } from "../dom.js";
import { bytes, number } from "../format.js";
import { get, post, Refused } from "../rest.js";
import { yaml } from "../yaml.js";

const DRAFT = "raydml.draft";
const FIRST = `name: glyphs
seed: 7
data: {kind: glyphs}
batch: {classes: 32, samples: 4, virtual_workers: 8}
model: {backbone: {kind: small_cnn}, dimension: 128}
loss: {kind: multi_similarity}
parallel: {workers: {min: 1, max: 2}}
train: {steps: 500, optimizer: {kind: adamw, lr: 0.001}, evaluate_every: 100}
index: {collection: glyphs}
`;

const SWEEP = `tune:
  space: {loss.alpha: {uniform: [1, 4]}, train.optimizer.lr: {loguniform: [0.0001, 0.01]}}
  scheduler: {kind: asha}
  trials: 12
  seeds: 3
`;

export async function show(place, { query, signal }) {
  const text = await first(query, signal);
  const area = h("textarea", { class: "code", name: "spec", spellcheck: "false", autocapitalize: "off", "aria-label": "Spec, YAML", "aria-describedby": "spec-said", rows: 24 });
  area.value = text;
  const said = h("div", { id: "spec-said", "aria-live": "polite" }, empty("Check the spec to see data, batches, memory and mistakes; nothing is kept."));
  const name = h("input", { name: "name", pattern: "[A-Za-z0-9][A-Za-z0-9._~\\-]{0,127}", placeholder: "that of the spec" });
  const labels = h("input", { name: "labels", placeholder: "team:search, owner:ada" });
  const priority = h("input", { type: "number", name: "priority", min: -100, max: 100, value: 0 });
  const check = h("button", { type: "button", onclick: () => look() }, "Check");
  const submit = h("button", { class: "primary" }, "Submit");
  area.addEventListener("input", () => {
    sessionStorage.setItem(DRAFT, area.value);
    area.removeAttribute("aria-invalid");
  });
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    look();
  });

  async function work(act, text) {
    for (const button of [check, submit]) button.disabled = true;
    fill(said, h("p", { class: "muted" }, text));
    try {
      await act();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      area.setAttribute("aria-invalid", "true");
      fill(said, problem(error, area));
    } finally {
      for (const button of [check, submit]) button.disabled = false;
    }
  }

  const look = () => work(async () => fill(said, plan(await post(searches(area.value) ? "/v1/sweeps:plan" : "/v1/jobs:plan", { spec: area.value }, { signal }))), "Looking at the data …");
  const send = (event) => {
    event.preventDefault();
    return work(async () => {
      const job = await post(searches(area.value) ? "/v1/sweeps" : "/v1/jobs", { spec: area.value, labels: labelled(labels.value), priority: Number(priority.value), ...(name.value ? { name: name.value } : {}) });
      say(`${job.name} was accepted.`);
      location.hash = `#/${job.kind}s/${job.id}`;
    }, "Looking at the data, then accepting …");
  };
  const field = (text, input) => h("label", { class: "field" }, text, input);
  fill(
    place,
    heading(query.get("of") === "sweep" ? "New sweep" : "New job"),
    h(
      "form",
      { class: "columns", onsubmit: send },
      panel("Spec", { note: "YAML or JSON; Ctrl+Enter checks it; with a section tune it is a sweep" }, area),
      h("div", { class: "stack" }, panel("Job", {}, h("div", { class: "stack" }, field("Name", name), field("Labels", labels), field("Priority, more goes first", priority), h("div", { class: "row" }, check, submit))), panel("What it would do", {}, said)),
    ),
  );
}

/** That of a job, the best one of a sweep, or what was written last. */
async function first(query, signal) {
  const [from, best] = [query.get("from"), query.get("best")];
  if (from) return yaml((await get(`/v1/jobs/${from}`, {}, signal)).spec);
  if (best) return yaml((await get(`/v1/sweeps/${best}`, {}, signal)).result.best_spec);
  const draft = sessionStorage.getItem(DRAFT) ?? FIRST;
  return query.get("of") === "sweep" && !searches(draft) ? `${draft.trimEnd()}\n${SWEEP}` : draft;
}

/** Whether a spec has a section tune: the server says where to, should this be mistaken. */
const searches = (text) => /(^|[{,])\s*["']?tune["']?\s*:\s*(?!null)/m.test(text);

function labelled(text) {
  const pairs = text.split(",").map((one) => one.split(":").map((part) => part.trim())).filter(([name]) => name);
  return Object.fromEntries(pairs.map(([name, ...value]) => [name, value.join(":")]));
}

/** The mistakes, each of which leads to its line. */
function problem(error, area) {
  const line = (one) => (one.line ? h("button", { type: "button", class: "small", onclick: () => go(area, one.line) }, `Line ${one.line}`) : null);
  return h(
    "div",
    { class: "problem", role: "alert" },
    error.errors.length ? h("ul", {}, error.errors.map((one) => h("li", {}, line(one), " ", h("code", {}, one.path), ": ", one.message))) : error.message,
  );
}

function go(area, line) {
  const lines = area.value.split("\n");
  const start = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
  area.focus();
  area.setSelectionRange(start, start + (lines[line - 1]?.length ?? 0));
  area.scrollTop = Math.max(0, (line - 8) * 19.5);
}

function plan(found) {
  const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
  const worlds = found.world_sizes;
  return h(
    "div",
    { class: "stack" },
    found.batches.possible ? h("p", { class: "good" }, "✓ This can run.") : h("p", { class: "problem" }, found.batches.problem),
    found.notes.map((note) => h("p", { class: "advice" }, note)),
    found.study ? h("dl", { class: "facts" }, fact("Configurations", number(found.study.configurations)), fact("Trials, at most", number(found.study.trials)), fact("Steps, at most", number(found.study.steps)), fact("A trial takes", found.study.trial.takes)) : null,
    h("dl", { class: "facts" }, fact("Parameters", number(found.parameters)), fact("Batch", `${found.batches.size} items`), fact("Batches a pass", number(found.batches.per_pass)), fact("Workers", worlds.length > 1 ? `${worlds[0]}–${worlds.at(-1)}` : String(worlds[0])), fact("Result", found.exactness)),
    table("Splits", [["Split", ([name]) => name], ["Classes", ([, split]) => number(split.classes), { class: "number" }], ["Items", ([, split]) => number(split.images), { class: "number" }]], Object.entries(found.splits)),
    table("Memory of a worker", [["Workers", ([workers]) => workers, { class: "number" }], ["Memory of each", ([, size]) => bytes(size), { class: "number" }], ["Slices", ([workers]) => (found.slices[workers] ?? []).map((slices) => slices.length).join(" + "), { class: "number" }]], Object.entries(found.worker_bytes)),
    found.proposal ? h("p", { class: "note" }, `Proposal: ${found.proposal.strategy}: ${found.proposal.why}`) : null,
  );
}
