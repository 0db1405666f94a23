/** How the group of workers changed: a step line over time with deaths, joins and recoveries, and a table of them. */

import { colour, lineChart } from "../charts.js";
import { empty, fill, h, panel, table } from "../dom.js";
import { duration, number } from "../format.js";
import { LIVE } from "./state.js";

const LOSSES = new Set(["death", "lost", "fenced", "straggler"]);
const GAINS = new Set(["join", "resume", "start"]);

export function showWorkers(board) {
  const { signal } = board;
  const changes = [];
  const chart = lineChart({
    title: "Workers over time",
    series: [{ label: "workers", colour: "--chart-1", stepped: true, fill: true, width: 2 }],
    x: "time",
    time: true,
    height: 150,
    y: (_, __, high) => [0, Math.max(board.job.workers.max, high ?? 1) + 0.5],
    tick: (value) => (Number.isInteger(value) ? String(value) : ""),
    marks,
    signal,
  });
  const rows = h("div", {});
  const list = panel("Changes of the group", {}, rows);

  /** A cross where workers were lost, a disc where some came, a square for other changes. */
  function marks(u) {
    const { ctx } = u;
    ctx.save();
    ctx.lineWidth = 2 * devicePixelRatio;
    for (const change of changes) {
      const x = u.valToPos(change.time, "x", true);
      const y = u.valToPos(change.after, "y", true);
      if (x < u.bbox.left - 1 || x > u.bbox.left + u.bbox.width + 1) continue;
      const r = 5 * devicePixelRatio;
      const kind = LOSSES.has(change.cause) ? "--bad" : GAINS.has(change.cause) ? "--good" : "--warn";
      ctx.strokeStyle = ctx.fillStyle = colour(kind);
      ctx.beginPath();
      if (kind === "--bad") {
        ctx.moveTo(x - r, y - r);
        ctx.lineTo(x + r, y + r);
        ctx.moveTo(x + r, y - r);
        ctx.lineTo(x - r, y + r);
        ctx.stroke();
      } else if (kind === "--good") {
        ctx.arc(x, y, r * 0.8, 0, 2 * Math.PI);
        ctx.fill();
      } else ctx.fillRect(x - r * 0.7, y - r * 0.7, r * 1.4, r * 1.4);
    }
    ctx.restore();
  }

  function draw() {
    const times = changes.map((change) => change.time);
    const sizes = changes.map((change) => change.after);
    if (times.length) {
      const end = LIVE.has(board.job.state) ? Date.now() / 1000 : new Date(board.job.finished_at ?? board.job.updated_at) / 1000;
      times.push(Math.max(end, times.at(-1) + 1));
      sizes.push(sizes.at(-1));
    }
    chart.set([times, sizes]);
    fill(rows, changes.length ? changesTable(changes) : empty("No workers yet."));
  }

  board.listeners.add((event) => {
    if (event.type !== "membership") return;
    changes.push(event.data);
    draw();
  });
  const timer = setInterval(() => LIVE.has(board.job.state) && !document.hidden && draw(), 2000);
  signal.addEventListener("abort", () => clearInterval(timer));
  draw();
  return { element: panel("Workers", { note: "✕ lost, ● came, ■ other changes" }, chart.element), table: list };
}

function changesTable(changes) {
  const kind = (change) => (LOSSES.has(change.cause) ? "bad" : GAINS.has(change.cause) ? "good" : "");
  return table(
    "Changes of the group of workers",
    [
      ["Step", (change) => number(change.step), { class: "number" }],
      ["Cause", (change) => h("span", { class: kind(change), title: [change.members.join(", "), change.note].filter(Boolean).join(": ") }, change.cause)],
      ["Workers", (change) => `${change.before} → ${change.after}`, { class: "number" }],
      ["Down", (change) => duration(change.down), { class: "number", hint: "from the cause until training went on" }],
      ["Steps again", (change) => number(change.lost), { class: "number" }],
    ],
    changes.slice(-40).reverse(),
    { class: "low" },
  );
}
