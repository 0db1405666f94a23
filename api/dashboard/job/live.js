/** A job as it trains: loss, metrics, health, workers, throughput, what happened and what it wrote. */

import { lineChart } from "../charts.js";
import { fill, h, panel } from "../dom.js";
import { duration, number, share, words } from "../format.js";
import { follow } from "../rest.js";
import { showEvents } from "./events.js";
import { showLog } from "./log.js";
import { showWorkers } from "./workers.js";

const KEPT = 20000; // lines of training that are shown, the last ones
const HEALTH = ["effective_rank", "spread", "gap", "ordered_triplets", "silent_rows", "norm_mean", "dead_proxies"];
const FRAME = 100; // milliseconds between two drawings

export async function showLive(place, board) {
  const { signal, job } = board;
  const lines = new Lines(job);
  const loss = lineChart({ title: "Loss", series: [{ label: "loss", colour: "--chart-1" }, { label: "smoothed", colour: "--chart-2", width: 2 }], height: 230, signal });
  const metrics = lineChart({ title: "Validation metrics", series: [{ label: "MAP@R", colour: "--chart-1", points: true }, { label: "Recall@1", colour: "--chart-3", points: true }, { label: "R-precision", colour: "--chart-4", points: true }], y: [0, 1], height: 200, show: share, signal });
  const speed = lineChart({ title: "Throughput", series: [{ label: "items/s", colour: "--chart-3" }], height: 160, signal });
  const gradient = lineChart({ title: "Gradient norm", series: [{ label: "norm", colour: "--chart-4" }], height: 160, signal });
  const health = h("div", { class: "thirds" });
  const healthPanel = panel("Health of the embedding", { note: "measured every few steps, of at most 512 rows" }, health);
  const charts = new Map();
  const tiles = h("dl", { class: "facts large", "aria-live": "off" });
  const workers = showWorkers(board);

  fill(
    place,
    h(
      "div",
      { class: "columns" },
      h(
        "div",
        { class: "stack" },
        panel("Progress", {}, tiles),
        panel("Loss", { note: "drag to zoom, double-click to see all, arrow keys to read" }, loss.element),
        workers.element,
        h("div", { class: "halves" }, panel("Validation", { note: "classes that training does not see" }, metrics.element), panel("Throughput", { note: "items of the global batch a second" }, speed.element)),
        h("div", { class: "halves" }, panel("Gradient norm", {}, gradient.element), workers.table),
        healthPanel,
      ),
      h("div", { class: "stack" }, showEvents(board), showLog(board)),
    ),
  );
  healthPanel.hidden = true;

  let waiting = null;
  function draw() {
    waiting = null;
    loss.set([lines.steps, lines.loss, lines.smooth]);
    metrics.set(lines.validation);
    speed.set([lines.steps, lines.speed]);
    gradient.set([lines.steps, lines.gradient]);
    for (const [name, series] of lines.health) {
      if (!charts.has(name)) {
        charts.set(name, lineChart({ title: words(name), series: [{ label: words(name), colour: "--chart-5" }], height: 110, signal }));
        health.append(h("div", {}, h("h3", {}, words(name)), charts.get(name).element));
        healthPanel.hidden = false;
      }
      charts.get(name).set(series);
    }
    fill(tiles, summary(lines, board.job).map(([name, value, more]) => h("div", {}, h("dt", {}, name), h("dd", {}, value, more && h("small", {}, more)))));
  }

  const after = Math.max(0, (job.progress?.step ?? 0) - KEPT);
  draw();
  follow(`/v1/jobs/${board.id}/metrics`, {
    after,
    signal,
    take: (line) => {
      lines.add(line);
      waiting ??= setTimeout(draw, FRAME);
    },
  }).catch(() => {});
}

/** What training logged, as columns; a step that is taken again takes the place of what came after it. */
class Lines {
  constructor(job) {
    this.rows = job.spec.batch.classes * job.spec.batch.samples;
    this.steps = [];
    this.loss = [];
    this.smooth = [];
    this.speed = [];
    this.gradient = [];
    this.validation = [[], [], [], []];
    this.health = new Map();
    this.last = null;
    this.began = null;
  }

  add({ step, data }) {
    if ("validation" in data) {
      const { map_at_r, recall_at_1, r_precision } = data.validation;
      this.#push(this.validation, [step, map_at_r, recall_at_1 ?? data.validation.precision_at_1, r_precision]);
    } else if ("loss" in data) {
      const before = this.smooth.at(-1) ?? data.loss;
      this.#push([this.steps, this.loss, this.smooth, this.speed, this.gradient], [step, data.loss, 0.9 * before + 0.1 * (data.loss ?? before), this.rows / (data.step_seconds + (data.data_seconds ?? 0)), data.gradient_norm ?? null]);
      for (const name of HEALTH) {
        if (!(name in data)) continue;
        if (!this.health.has(name)) this.health.set(name, [[], []]);
        this.#push(this.health.get(name), [step, data[name]]);
      }
      this.last = { step, ...data };
    }
  }

  #push(columns, values) {
    while (columns[0].length && columns[0].at(-1) >= values[0]) for (const column of columns) column.pop();
    columns.forEach((column, place) => column.push(values[place]));
  }

  /** Items a second, the median of the last steps. */
  get pace() {
    const recent = this.speed.slice(-50).sort((a, b) => a - b);
    return recent.length ? recent[recent.length >> 1] : null;
  }
}

function summary(lines, job) {
  const steps = job.spec.train.steps;
  const step = lines.last?.step ?? job.progress?.step ?? 0;
  const live = ["running", "resizing", "recovering"].includes(job.state);
  const left = live && lines.pace ? ((steps - step) * lines.rows) / lines.pace : null;
  const best = lines.validation[1].length ? Math.max(...lines.validation[1]) : null;
  return [
    ["Step", `${step}`, `of ${steps}, ${((100 * step) / steps).toFixed(0)} %`],
    ["Loss", number(lines.last?.loss), "of the last step"],
    ["Best MAP@R", share(best), "validation"],
    ["Workers", live ? String(job.progress?.workers ?? "–") : "0", `${job.workers.min} to ${job.workers.max} wanted`],
    ["Throughput", lines.pace ? number(Math.round(lines.pace)) : "–", "items a second"],
    ["Left", left === null ? "–" : duration(left), live ? "at this pace" : job.state],
  ];
}
