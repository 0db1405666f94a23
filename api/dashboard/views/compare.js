/** Two runs on the same queries: metrics side by side, what got fixed and what broke. */

import { itemsOf } from "../job/pictures.js";
import { asked, neighbours } from "../job/queries.js";
import { empty, fill, h, heading, panel, table } from "../dom.js";
import { number, share, signed, words } from "../format.js";
import { get, items } from "../rest.js";

const AT_ONCE = 10;

export async function show(place, { query, signal }) {
  const jobs = await items("/v1/jobs", { state: "succeeded" }, 400, signal);
  const [a, b] = ["a", "b"].map((name) => query.get(name) ?? "");
  const go = () => (location.hash = `#/compare?a=${first.value}&b=${second.value}`);
  const select = (name, value) => h("select", { name, onchange: go }, h("option", { value: "" }, "Choose a job"), jobs.map((job) => h("option", { value: job.id, selected: job.id === value }, `${job.name} · ${share(job.result?.metrics?.map_at_r)} · …${job.id.slice(-6)}`)));
  const first = select("a", a);
  const second = select("b", b);
  const body = h("div", { class: "stack" });
  fill(place, heading("Compare"), h("div", { class: "stack" }, panel("Runs", {}, h("div", { class: "row" }, h("label", { class: "field" }, "A, before", first), h("label", { class: "field" }, "B, after", second))), body));
  if (!a || !b || a === b) {
    fill(body, panel("Differences", {}, empty(jobs.length < 2 ? "Two jobs that succeeded are needed." : "Choose two jobs, here or by the boxes in the list of jobs.")));
    return;
  }
  await compare(body, a, b, signal);
}

async function compare(body, a, b, signal) {
  const sides = await Promise.all([a, b].map((id) => side(id, signal)));
  fill(body, metrics(sides));
  const common = paired(sides);
  if (!common) body.append(panel("Queries", {}, empty("The runs share no queries, or one wrote none: only runs on the same data can be compared query by query.")));
  else body.append(...changed(sides, common));
}

async function side(id, signal) {
  const [job, evaluation, pictures] = await Promise.all([get(`/v1/jobs/${id}`, {}, signal), get(`/v1/jobs/${id}/evaluation`, {}, signal), itemsOf(id)]);
  const queries = pictures && (await get(`/v1/jobs/${id}/artifacts/views/queries.json`, {}, signal));
  return { job, evaluation, items: pictures, queries };
}

function metrics([a, b]) {
  const names = Object.keys(a.evaluation.metrics).filter((name) => name in b.evaluation.metrics && !name.startsWith("queries"));
  const bound = (one, name) => (one.evaluation.intervals[name] ? h("span", { class: "sub" }, one.evaluation.intervals[name].map(share).join(" – ")) : null);
  const change = (name) => b.evaluation.metrics[name] - a.evaluation.metrics[name];
  return panel(
    "Metrics of the test split",
    { note: "with 95 % intervals" },
    table(
      "Metrics of both runs",
      [
        ["Metric", (name) => h("strong", {}, words(name))],
        [`A: ${a.job.name}`, (name) => [share(a.evaluation.metrics[name]), bound(a, name)], { class: "number" }],
        [`B: ${b.job.name}`, (name) => [share(b.evaluation.metrics[name]), bound(b, name)], { class: "number" }],
        ["B − A", (name) => h("span", { class: change(name) >= 0 ? "good" : "bad" }, signed(change(name))), { class: "number" }],
      ],
      names,
    ),
  );
}

/** Places in A and in B of each query that both kept, by id. */
function paired([a, b]) {
  if (!a.queries || !b.queries) return null;
  const there = new Map(b.queries.items.map((item, place) => [b.items.ids[item], place]));
  const found = a.queries.items.map((item, place) => [place, there.get(a.items.ids[item])]).filter(([, place]) => place !== undefined);
  return found.length ? found : null;
}

function changed(sides, common) {
  const [a, b] = sides.map((one) => one.queries.values);
  const gain = ([left, right]) => b.map_at_r[right] - a.map_at_r[left];
  const fixed = common.filter(([left, right]) => !a.precision_at_1[left] && b.precision_at_1[right]).sort((one, other) => gain(other) - gain(one));
  const broken = common.filter(([left, right]) => a.precision_at_1[left] && !b.precision_at_1[right]).sort((one, other) => gain(one) - gain(other));
  const counted = `of ${number(common.length)} queries that both runs kept`;
  return [
    panel("Fixed", { class: "fixed", note: `${number(fixed.length)} ${counted}: the nearest item was wrong in A and is right in B` }, list(sides, fixed)),
    panel("Broken", { class: "broken", note: `${number(broken.length)} ${counted}: right in A, wrong in B` }, list(sides, broken)),
  ];
}

function list(sides, pairs, most = AT_ONCE) {
  if (!pairs.length) return empty("None.");
  const place = h("div", {});
  const draw = (count) => fill(place, h("ol", { class: "queries" }, pairs.slice(0, count).map((pair) => line(sides, pair))), pairs.length > count && h("button", { type: "button", onclick: () => draw(count + 2 * AT_ONCE) }, `More (${number(pairs.length - count)})`));
  draw(most);
  return place;
}

function line(sides, pair) {
  const [a] = sides;
  const value = (side) => share(sides[side].queries.values.map_at_r[pair[side]]);
  const row = (name, side) => h("div", {}, h("b", {}, name), h("ol", { class: "pictures", "aria-label": `Neighbours in ${name}` }, neighbours(sides[side].queries, sides[side].items, pair[side])));
  return h("li", {}, asked(a.items, a.queries.items[pair[0]], [["MAP@R A", value(0)], ["MAP@R B", value(1)]]), h("div", { class: "both" }, row("A", 0), row("B", 1)));
}
