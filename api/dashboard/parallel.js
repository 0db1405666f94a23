/** Parallel coordinates: one line a row over an axis a column, coloured by the last one; a drag on an axis keeps a range. */

import { canvas, colour } from "./charts.js";
import { number } from "./format.js";

const HEIGHT = 340;
const TOP = 34;
const BOTTOM = 22;
const SIDE = 60;
const NARROW = 96; // pixels between two axes, at least
const NEAR = 18; // pixels from an axis that belong to it
const LOGARITHMIC = 50; // times that the largest value is the smallest one

/**
 * `{element, set(columns), lit(row), kept()}`: columns are [{name, values}], one value a row, numbers or words; null
 * breaks a line. `changed()` is called when other rows are kept; `lit` draws one of them on top. By keyboard: left and
 * right choose an axis, up and down move the lower end of its range, with Shift the upper one, Escape lets go.
 */
export function parallel({ title, changed, signal }) {
  let axes = [];
  let rows = 0;
  let ranges = []; // of each axis, [low, high] places from 0 at the bottom to 1, or null
  let chosen = -1;
  let dragged = null;
  let held = -1; // the axis that keys move
  const view = canvas(title, HEIGHT, draw, signal);

  const x = (place, width) => (axes.length > 1 ? SIDE + (place / (axes.length - 1)) * (width - 2 * SIDE) : width / 2);
  const y = (share) => HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
  const inside = (row) => axes.every((one, place) => ranges[place] === null || (one.at[row] !== null && one.at[row] >= ranges[place][0] && one.at[row] <= ranges[place][1]));

  /** Other rows; ranges stay where the axes do. */
  function set(columns) {
    const same = columns.length === axes.length && columns.every(({ name }, place) => name === axes[place].name);
    axes = columns.map(({ name, values }) => axis(name, values));
    rows = columns[0]?.values.length ?? 0;
    if (!same) ranges = axes.map(() => null);
    view.element.style.minWidth = `${axes.length * NARROW}px`;
    view.element.setAttribute("aria-label", `${title}: ${rows} lines over ${axes.map((one) => one.name).join(", ")}`);
    view.paint();
  }

  function draw(context, width) {
    if (!rows) return;
    const last = axes.at(-1);
    context.lineJoin = "round";
    for (let row = 0; row < rows; row++) if (!inside(row)) line(context, width, row, colour("--grid"), 1);
    for (let row = 0; row < rows; row++) if (inside(row)) line(context, width, row, shade(last.at[row]), 1.5);
    if (chosen >= 0) line(context, width, chosen, colour("--text"), 3);
    axes.forEach((one, place) => drawAxis(context, one, x(place, width), ranges[place], place));
  }

  function line(context, width, row, stroke, thickness) {
    context.strokeStyle = stroke;
    context.lineWidth = thickness;
    context.beginPath();
    let pen = false;
    axes.forEach((one, place) => {
      if (one.at[row] === null) pen = false;
      else {
        context[pen ? "lineTo" : "moveTo"](x(place, width), y(one.at[row]));
        pen = true;
      }
    });
    context.stroke();
  }

  function drawAxis(context, one, left, range, place) {
    context.strokeStyle = colour(place === held ? "--accent" : "--line-strong");
    context.lineWidth = place === held ? 3 : 1;
    context.beginPath();
    context.moveTo(left, y(0));
    context.lineTo(left, y(1));
    context.stroke();
    if (range) {
      context.fillStyle = colour("--accent");
      context.globalAlpha = 0.35;
      context.fillRect(left - 5, y(range[1]), 10, y(range[0]) - y(range[1]));
      context.globalAlpha = 1;
    }
    context.fillStyle = colour("--text");
    context.textAlign = "center";
    context.font = `600 11px ${colour("--sans")}`;
    context.fillText(one.name, left, place % 2 && axes.length > 6 ? 26 : 12);
    context.font = `11px ${colour("--sans")}`;
    context.fillStyle = colour("--muted");
    context.textAlign = "left";
    context.strokeStyle = colour("--surface");
    context.lineWidth = 5;
    for (const [text, share] of one.ticks) {
      const spot = [text, left + 8, y(share) + 4];
      context.strokeText(...spot);
      context.fillText(...spot);
    }
  }

  const share = (event) => Math.min(1, Math.max(0, (HEIGHT - BOTTOM - event.offsetY) / (HEIGHT - TOP - BOTTOM)));
  view.element.addEventListener("pointerdown", (event) => {
    const width = view.element.clientWidth;
    const place = axes.findIndex((_, one) => Math.abs(x(one, width) - event.offsetX) < NEAR);
    if (place < 0) return;
    dragged = { place, from: share(event) };
    view.element.setPointerCapture(event.pointerId);
  });
  view.element.addEventListener("pointermove", (event) => {
    if (!dragged) return;
    const to = share(event);
    const wide = Math.abs(to - dragged.from) > 0.02;
    ranges[dragged.place] = wide ? [Math.min(dragged.from, to), Math.max(dragged.from, to)] : null;
    view.paint();
    changed();
  });
  view.element.addEventListener("pointerup", (event) => {
    if (dragged && Math.abs(share(event) - dragged.from) <= 0.02) ranges[dragged.place] = null;
    dragged = null;
    view.paint();
    changed();
  });

  view.element.addEventListener("keydown", (event) => {
    const step = { ArrowUp: 0.05, ArrowDown: -0.05 }[event.key];
    const side = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (side) held = Math.min(Math.max(held + side, 0), axes.length - 1);
    else if (held < 0 || !(step || event.key === "Escape")) return;
    else ranges[held] = step ? moved(ranges[held] ?? [0, 1], step, event.shiftKey) : null;
    event.preventDefault();
    view.paint();
    changed();
  });
  view.element.addEventListener("blur", () => {
    held = -1;
    view.paint();
  });

  return {
    element: view.element,
    set,
    lit(row) {
      chosen = row;
      view.paint();
    },
    kept: () => Array.from({ length: rows }, (_, row) => row).filter(inside),
  };
}

/** A range with one of its ends elsewhere, never across the other one. */
function moved([low, high], step, upper) {
  return upper ? [low, Math.min(1, Math.max(low, high + step))] : [Math.max(0, Math.min(high, low + step)), high];
}

/** Where each value stands on its axis, from 0 to 1, and its ticks. */
function axis(name, values) {
  const there = values.filter((value) => value !== null && value !== undefined);
  if (there.every((value) => typeof value === "number")) {
    const [low, high] = [Math.min(...there), Math.max(...there)];
    const log = low > 0 && high / low >= LOGARITHMIC;
    const scale = log ? Math.log : (value) => value;
    const place = (value) => (high === low ? 0.5 : (scale(value) - scale(low)) / (scale(high) - scale(low)));
    const middle = log ? Math.sqrt(low * high) : (low + high) / 2;
    const ticks = high === low ? [low] : [low, middle, high];
    return { name, at: values.map((value) => (value === null || value === undefined ? null : place(value))), ticks: there.length ? ticks.map((value) => [number(value), place(value)]) : [] };
  }
  const words = [...new Set(there.map(String))].sort();
  const place = (value) => (words.length > 1 ? words.indexOf(String(value)) / (words.length - 1) : 0.5);
  return { name, at: values.map((value) => (value === null || value === undefined ? null : place(value))), ticks: words.map((word) => [word.slice(0, 16), place(word)]) };
}

/** From the colour of the worst to that of the best. */
function shade(share) {
  return share === null ? colour("--muted") : `color-mix(in oklab, ${colour("--chart-1")} ${Math.round(100 * share)}%, ${colour("--chart-2")})`;
}
