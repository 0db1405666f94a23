/** Scores of pairs of one class and of two: their histograms, and how many are accepted at which false accept rate. */

import { canvas, colour, keyLine, lineChart } from "../charts.js";
import { empty, h, panel, table } from "../dom.js";
import { number, percent, share } from "../format.js";

const HEIGHT = 220;

export function scorePanels(scores, signal) {
  const sampled = scores.queries < scores.of ? `${number(scores.queries)} of ${number(scores.of)} queries with the whole gallery` : "all pairs";
  return [
    panel("Scores of pairs", { note: `${scores.metric}, ${sampled}` }, histogram(scores, signal), keyLine([["--chart-1", "pairs of one class"], ["--chart-2", "pairs of two classes"]])),
    panel("True accepts at false accept rates", {}, scores.tar_at_far.length ? rates(scores, signal) : empty("Too few negative pairs to tell.")),
  ];
}

/** Both histograms as densities, each of area one: there are far more pairs of two classes. */
function histogram({ edges, positive, negative }, signal) {
  const density = (counts) => {
    const sum = counts.reduce((a, b) => a + b, 0) || 1;
    return counts.map((count, place) => count / sum / (edges[place + 1] - edges[place] || 1));
  };
  const both = [[density(positive), "--chart-1"], [density(negative), "--chart-2"]];
  const high = Math.max(...both.flatMap(([values]) => values));
  const left = 8;
  const bottom = 20;
  const [first, last] = [edges[0], edges.at(-1)];
  const draw = (context, width, height) => {
    const x = (value) => left + ((value - first) / (last - first)) * (width - 2 * left);
    const y = (value) => height - bottom - (value / high) * (height - bottom - 8);
    context.font = `11px ${colour("--sans")}`;
    context.fillStyle = colour("--muted");
    context.strokeStyle = colour("--grid");
    context.textAlign = "center";
    for (const tick of ticks(first, last, 6)) {
      context.beginPath();
      context.moveTo(x(tick), 4);
      context.lineTo(x(tick), height - bottom);
      context.stroke();
      context.fillText(number(tick), x(tick), height - 5);
    }
    for (const [values, name] of both) {
      context.beginPath();
      context.moveTo(x(first), y(0));
      values.forEach((value, place) => {
        context.lineTo(x(edges[place]), y(value));
        context.lineTo(x(edges[place + 1]), y(value));
      });
      context.lineTo(x(last), y(0));
      context.strokeStyle = context.fillStyle = colour(name);
      context.globalAlpha = 0.22;
      context.fill();
      context.globalAlpha = 1;
      context.lineWidth = 1.5;
      context.stroke();
      context.lineWidth = 1;
    }
  };
  const mean = (counts) => counts.reduce((sum, count, place) => sum + (count * (edges[place] + edges[place + 1])) / 2, 0) / (counts.reduce((a, b) => a + b, 0) || 1);
  return canvas(`Histograms of scores: pairs of one class ${number(mean(positive))} in the mean, pairs of two classes ${number(mean(negative))}`, HEIGHT, draw, signal).element;
}

function rates({ tar_at_far: rows, curve }, signal) {
  const chart = lineChart({ title: "True accept rate by false accept rate", series: [{ label: "true accepts", colour: "--chart-3", width: 2 }], x: "false accepts", log: true, y: [0, 1], height: 150, show: share, showX: (value) => (value >= 0.001 ? String(Number(value.toPrecision(2))) : value.toExponential(0)), signal });
  chart.set([curve.far, curve.tar]);
  return h(
    "div",
    { class: "stack" },
    table(
      "True accept rates",
      [
        ["False accepts", (row) => percent(row.far).replace(".0 ", " ").replace("0 %", row.far < 0.001 ? `${100 * row.far} %` : "0 %"), { class: "number" }],
        ["True accepts", (row) => share(row.tar), { class: "number" }],
        ["Threshold", (row) => number(row.threshold), { class: "number", hint: "pairs of at least this score are accepted" }],
      ],
      rows,
    ),
    chart.element,
  );
}

/** About `count` round numbers between two. */
export function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough) ?? power;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(Number(value.toFixed(10)));
  return found;
}
