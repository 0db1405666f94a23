/** Two runs on the same queries: metrics side by side, what got fixed and what broke. */

import { itemsOf } from "../job/pictures.js";
import { asked, neighbours } from "../job/queries.js";
import { empty, fill, h, heading, panel, table } from "../dom.js";
import { number, share, signed, words } from "../format.js";
import { get, succeeded } from "../rest.js";

const AT_ONCE = 10;
const MOST = 1000; // queries that the server is asked to list

export async function show(place, { query, signal }) {
  const jobs = await succeeded(400, signal);
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
  fill(body, h("p", { class: "muted" }, "Comparing the same queries …"));
  const [found, ...sides] = await Promise.all([get(`/v1/jobs/${a}/evaluation:compare`, { with: b, shown: MOST }, signal), side(a, signal), side(b, signal)]);
  fill(
    body,
    metrics(found, sides),
    panel("Fixed", { class: "fixed", note: counted(found.num_fixed, found, "wrong in A and right in B") }, list(sides, found.fixed)),
    panel("Broken", { class: "broken", note: counted(found.num_broken, found, "right in A and wrong in B") }, list(sides, found.broken)),
  );
}

const counted = (count, found, how) => `${number(count)} of ${number(found.queries)} queries: the nearest item is ${how}`;

/** A job, and what its run kept to show: queries by id with their neighbours, and pictures. */
async function side(id, signal) {
  const [job, pictures] = await Promise.all([get(`/v1/jobs/${id}`, {}, signal), itemsOf(id)]);
  const queries = pictures && (await get(`/v1/jobs/${id}/artifacts/views/queries.json`, {}, signal));
  const places = new Map(queries?.items.map((item, place) => [pictures.ids[item], place]));
  return { job, items: pictures, queries, places };
}

function metrics(found, [a, b]) {
  const columns = [
    ["Metric", ([name]) => h("strong", {}, words(name)), { class: "title" }],
    [`A: ${a.job.name}`, ([, gain]) => share(gain.before), { class: "number" }],
    [`B: ${b.job.name}`, ([, gain]) => share(gain.after), { class: "number" }],
    ["Gained", ([, gain]) => h("span", { class: gain.significant ? (gain.gained > 0 ? "good" : "bad") : "" }, signed(gain.gained)), { class: "number" }],
    [`${100 * found.how.confidence} % interval`, ([, gain]) => gain.interval.map(signed).join(" to "), { class: "number", hint: "of what was gained, by resampled queries that both were asked" }],
    ["Verdict", ([, gain]) => (gain.significant ? "significant" : h("span", { class: "muted" }, "may be chance")), { class: "nowrap" }],
  ];
  return panel(
    "What was gained",
    { note: `the same ${number(found.queries)} queries, ${number(found.gallery)} items, ${found.metric}; intervals draw ${found.chance} anew` },
    table("What was gained", columns, Object.entries(found.metrics), { class: "cards" }),
    found.notes.map((note) => h("p", { class: "note" }, note)),
  );
}

/** Those whose neighbours both runs kept stand first; by how much they changed. */
function list(sides, changed, most = AT_ONCE) {
  if (!changed.length) return empty("None.");
  const kept = (query) => sides.every((one) => one.places.has(query.id));
  const rows = [...changed.filter(kept), ...changed.filter((query) => !kept(query))];
  const place = h("div", {});
  const draw = (count) => fill(place, h("ol", { class: "queries" }, rows.slice(0, count).map((query) => line(sides, query))), rows.length > count && h("button", { type: "button", onclick: () => draw(count + 2 * AT_ONCE) }, `More (${number(rows.length - count)})`));
  draw(most);
  return place;
}

function line(sides, query) {
  const facts = [["MAP@R A", share(query.before.map_at_r)], ["MAP@R B", share(query.after.map_at_r)]];
  const shown = sides.find((one) => one.items?.place(query.id) !== undefined);
  const name = shown ? asked(shown.items, shown.items.place(query.id), facts) : h("div", {}, h("strong", {}, query.label), h("p", { class: "note" }, query.id));
  const row = (text, { queries, items, places }) => h("div", {}, h("b", {}, text), places.has(query.id) ? h("ol", { class: "pictures", "aria-label": `Neighbours in ${text}` }, neighbours(queries, items, places.get(query.id))) : h("p", { class: "note" }, "the run kept no neighbours of this query"));
  return h("li", {}, name, h("div", { class: "both" }, row("A", sides[0]), row("B", sides[1])));
}
