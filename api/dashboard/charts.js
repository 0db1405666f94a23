/** Lines and steps over numbers: uPlot in the page's colours, read by keyboard, drawn anew when these change. */

import { h } from "./dom.js";
import { number } from "./format.js";
import uPlot from "./vendor/uplot/uPlot.esm.js";

/** Whole numbers that ticks of steps are apart. */
const STEPS = Array.from({ length: 27 }, (_, place) => [1, 2, 5][place % 3] * 10 ** Math.floor(place / 3));

/** The value of a CSS custom property now. */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Call `draw` when colours change, until the signal aborts. */
export function onTheme(signal, draw) {
  document.addEventListener("theme", draw, { signal });
}

/**
 * A chart in an element of its own: `{element, set(data)}`; data are [xs, ys, ...] of ascending xs, null for none.
 *
 * series: [{label, colour, dash, points, stepped, width, scale, fill}], `x` what the horizontal axis is, `time` whether
 * it is seconds since 1970, `y` a fixed range, `show` how values are written, `tick` how those of the axis are, `showX`
 * how xs are, `log` whether these are on a logarithmic scale; `marks(u)` draws on top.
 */
export function lineChart({ title, series, x = "step", time = false, y, height = 180, show = number, tick = number, showX, log = false, marks, signal }) {
  const host = h("div", { class: "chart", tabindex: "0", role: "img", "aria-label": title });
  let plot = null;
  let data = [[], ...series.map(() => [])];

  function build() {
    plot?.destroy();
    const width = Math.max(host.clientWidth, 120);
    plot = new uPlot(options(width), data, host);
    rest(plot);
  }

  function options(width) {
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { stroke: colour("--grid"), width: 1, size: 4 }, font: `11px ${colour("--sans")}` };
    return {
      width,
      height,
      padding: [8, 18, 0, 0],
      cursor: { drag: { x: true, y: false }, points: { size: 6 } },
      legend: { live: true },
      scales: { x: { time, ...(log ? { distr: 3 } : {}) }, y: y ? { range: y } : { range: padded } },
      axes: [
        { ...axis, size: 26, space: time ? 70 : 50, incrs: x === "step" ? STEPS : undefined, ...(time ? { values: (_, ticks) => ticks.map(clock) } : showX ? { values: (_, ticks) => ticks.map(written(showX)) } : {}) },
        { ...axis, size: 48, space: 24, values: (_, ticks) => ticks.map(written(tick)) },
      ],
      series: [
        { label: x, value: (_, value) => (value === null ? "–" : time ? clock(value) : (showX ?? number)(value)) },
        ...series.map((one) => ({
          label: one.label,
          stroke: colour(one.colour),
          width: one.width ?? 1.5,
          dash: one.dash,
          fill: one.fill ? `color-mix(in srgb, ${colour(one.colour)} 16%, transparent)` : undefined,
          paths: one.stepped ? uPlot.paths.stepped({ align: 1 }) : one.bars ? uPlot.paths.bars({ size: [1, 100], align: 1 }) : undefined,
          points: { show: () => one.points || data[0].length < 3, size: 6, fill: colour(one.colour) },
          spanGaps: true,
          value: (_, value) => (value === null || value === undefined ? "–" : show(value)),
        })),
      ],
      hooks: { setCursor: [rest], ...(marks ? { draw: [(u) => marks(u)] } : {}) },
    };
  }

  function set(next) {
    data = next;
    host.setAttribute("aria-label", summary());
    host.classList.toggle("bare", !data[0].length);
    if (plot) {
      plot.setData(data);
      rest(plot);
    } else if (host.clientWidth) build();
  }

  function summary() {
    const last = series.map((one, place) => `${one.label} ${show(data[place + 1].findLast((value) => value !== null && value !== undefined) ?? null)}`);
    return `${title}: ${data[0].length} points; last: ${last.join(", ")}`;
  }

  host.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || !plot || !data[0].length) return;
    event.preventDefault();
    const here = plot.cursor.idx ?? data[0].length - 1;
    const next = Math.min(Math.max(here + steps[event.key], 0), data[0].length - 1);
    plot.setCursor({ left: plot.valToPos(data[0][next], "x"), top: plot.bbox.height / 4 });
  });
  const watch = new ResizeObserver(() => {
    if (!host.clientWidth) return;
    if (!plot) build();
    else if (plot.width !== host.clientWidth) plot.setSize({ width: host.clientWidth, height });
  });
  watch.observe(host);
  onTheme(signal, () => plot && build());
  signal.addEventListener("abort", () => {
    watch.disconnect();
    plot?.destroy();
    plot = null;
  });
  return { element: host, set };
}

/** While nothing is pointed at, the legend has the last values. */
function rest(u) {
  if (u.cursor.idx === null || u.cursor.left < 0) u.setLegend({ idx: Math.max(0, u.data[0].length - 1) }, false);
}

const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString("en", { hourCycle: "h23" });
const written = (show) => (value) => (value === null ? "" : show(value));

/** What the vertical axis spans: the values with some room, also where they are all the same. */
function padded(_, low, high) {
  if (low === null || high === null) return [0, 1];
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}

/** What the colours of a chart without uPlot's legend mean: [[colour, text], ...]. */
export function keyLine(entries) {
  return h("div", { class: "key-line" }, entries.map(([name, text]) => h("span", {}, h("i", { vars: { "--colour": name.startsWith("--") ? `var(${name})` : name } }), text)));
}

/** A canvas as wide as its host and sharp on any screen; `draw(context, width, height)` again when either changes. */
export function canvas(title, height, draw, signal) {
  const element = h("canvas", { class: "plot", role: "img", "aria-label": title, tabindex: "0" });
  const paint = () => {
    const width = element.clientWidth;
    if (!width) return;
    const scale = devicePixelRatio || 1;
    element.width = Math.round(width * scale);
    element.height = Math.round(height * scale);
    const context = element.getContext("2d");
    context.scale(scale, scale);
    draw(context, width, height);
  };
  element.style.height = `${height}px`;
  const watch = new ResizeObserver(paint);
  watch.observe(element);
  onTheme(signal, paint);
  signal.addEventListener("abort", () => watch.disconnect());
  return { element, paint };
}
