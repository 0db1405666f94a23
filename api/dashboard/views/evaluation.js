/** How good a job's model is: metrics beside the baseline, scores of pairs, the worst queries, a map. */

import { lineChart } from "../charts.js";
import { embeddingMap } from "../job/map.js";
import { itemsOf } from "../job/pictures.js";
import { worstQueries } from "../job/queries.js";
import { scorePanels } from "../job/scores.js";
import { empty, fill, h, panel, table } from "../dom.js";
import { share, signed, words } from "../format.js";
import { get } from "../rest.js";

const COUNTS = new Set(["queries", "queries_without_positive"]);

export async function showEvaluation(place, board) {
  const { id, signal } = board;
  const measured = await get(`/v1/jobs/${id}/evaluation`, {}, signal);
  if (!Object.keys(measured.metrics).length && !measured.validation.length) {
    fill(place, panel("Evaluation", {}, empty("Nothing was measured yet: the test split is, when training has ended.")));
    return;
  }
  const views = await viewsOf(id, signal);
  fill(
    place,
    h(
      "div",
      { class: "stack" },
      h("div", { class: "halves" }, metricsPanel(measured), validationPanel(measured, signal)),
      views ? [h("div", { class: "halves" }, scorePanels(views.scores, signal)), worstQueries(views.queries, views.items), embeddingMap(views.map, views.items, signal)] : null,
    ),
  );
}

/** What the run wrote for the page, or null: an unfinished run, or one of before. */
async function viewsOf(id, signal) {
  const items = await itemsOf(id);
  if (!items) return null;
  const read = (name) => get(`/v1/jobs/${id}/artifacts/views/${name}.json`, {}, signal);
  const [scores, queries, map] = await Promise.all([read("scores"), read("queries"), read("map")]);
  return { items, scores, queries, map };
}

function metricsPanel({ metrics, intervals, baseline }) {
  const names = Object.keys(metrics).filter((name) => !COUNTS.has(name));
  const counted = metrics.queries ? `${metrics.queries} queries of classes that training did not see${metrics.queries_without_positive ? `, ${metrics.queries_without_positive} without a positive` : ""}` : "";
  const gain = (name) => (name in baseline ? h("span", { class: metrics[name] >= baseline[name] ? "good" : "bad" }, signed(metrics[name] - baseline[name])) : "–");
  if (!names.length) return panel("Test split", {}, empty("Measured when training has ended."));
  return panel(
    "Test split",
    { note: counted },
    table(
      "Metrics of the test split",
      [
        ["Metric", (name) => h("strong", {}, words(name)), { class: "title" }],
        ["Model", (name) => share(metrics[name]), { class: "number" }],
        ["95 % interval", (name) => (intervals[name] ? `${share(intervals[name][0])} – ${share(intervals[name][1])}` : "–"), { class: "number", hint: "bootstrap of the queries" }],
        ["Raw input", (name) => share(baseline[name]), { class: "number", hint: "the same metric of pixels, without a model" }],
        ["Gain", gain, { class: "number" }],
      ],
      names,
      { class: "cards" },
    ),
  );
}

function validationPanel({ validation }, signal) {
  const chart = lineChart({ title: "Validation metrics", series: [{ label: "MAP@R", colour: "--chart-1", points: true }, { label: "Recall@1", colour: "--chart-3", points: true }, { label: "Recall@10", colour: "--chart-2", points: true }], y: [0, 1], height: 200, show: share, signal });
  const rows = [...new Map(validation.map((one) => [one.step, one.metrics])).entries()].sort((a, b) => a[0] - b[0]);
  const column = (name) => rows.map(([, metrics]) => metrics[name] ?? null);
  chart.set([rows.map(([step]) => step), column("map_at_r"), column("recall_at_1"), column("recall_at_10")]);
  return panel("Validation while it trained", {}, validation.length ? chart.element : empty("Not measured while it trained."));
}
