/** Embeddings on a plane: a scatter that a pointer or arrow keys read item by item. */

import { canvas, colour } from "../charts.js";
import { fill, h, panel } from "../dom.js";
import { number, percent } from "../format.js";

const HEIGHT = 460;
const EDGE = 14;

export function embeddingMap(map, items, signal) {
  let chosen = -1;
  let label = "";
  let spots = [];
  const labels = map.items.map((item) => items.labels[item]);
  const classes = [...new Set(labels)];
  const hue = new Map(classes.map((name, place) => [name, ((place * 137.508) % 360 + 360) % 360]));
  const tip = h("div", { class: "tip", hidden: true });
  const view = canvas(`Map of ${map.items.length} embeddings of ${classes.length} classes`, HEIGHT, draw, signal);
  const pick = h("input", { type: "search", list: "map-classes", placeholder: "Show a class", "aria-label": "Show a class on the map", oninput: (event) => { label = event.target.value; view.paint(); } });

  function draw(context, width, height) {
    const [xs, ys] = [bounds(map.x), bounds(map.y)];
    const scale = Math.min((width - 2 * EDGE) / (xs[1] - xs[0] || 1), (height - 2 * EDGE) / (ys[1] - ys[0] || 1));
    const x = (value) => width / 2 + (value - (xs[0] + xs[1]) / 2) * scale;
    const y = (value) => height / 2 - (value - (ys[0] + ys[1]) / 2) * scale;
    spots = map.x.map((value, place) => [x(value), y(map.y[place])]);
    const dark = colour("--ground") < "#8";
    spots.forEach(([left, top], place) => {
      const here = !label || labels[place] === label;
      context.globalAlpha = here ? (label ? 1 : 0.75) : 0.12;
      context.fillStyle = here ? `hsl(${hue.get(labels[place])} 62% ${dark ? 66 : 42}%)` : colour("--muted");
      context.beginPath();
      context.arc(left, top, label && here ? 5 : 3, 0, 2 * Math.PI);
      context.fill();
    });
    context.globalAlpha = 1;
    if (chosen >= 0) {
      context.strokeStyle = colour("--text");
      context.lineWidth = 2;
      context.beginPath();
      context.arc(...spots[chosen], 7, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  function choose(place) {
    if (place === chosen) return;
    chosen = place;
    view.paint();
    tip.hidden = place < 0;
    if (place < 0) return;
    const item = map.items[place];
    fill(tip, items.hasPictures && h("span", {}, small(items, item)), h("span", {}, h("strong", {}, labels[place]), h("br"), items.ids[item]));
    const [left, top] = spots[place];
    const flip = left > view.element.clientWidth / 2;
    tip.style.left = flip ? "" : `${left + 12}px`;
    tip.style.right = flip ? `${view.element.clientWidth - left + 12}px` : "";
    tip.style.top = `${Math.min(top + 10, HEIGHT - 70)}px`;
    view.element.setAttribute("aria-label", `Item ${items.ids[item]} of class ${labels[place]}, ${place + 1} of ${map.items.length}`);
  }

  view.element.addEventListener("pointermove", (event) => choose(nearest(spots, event.offsetX, event.offsetY)));
  view.element.addEventListener("pointerleave", () => choose(-1));
  view.element.addEventListener("blur", () => choose(-1));
  view.element.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose((chosen + step + spots.length) % spots.length);
  });
  const shown = map.items.length < map.of ? `${number(map.items.length)} of ${number(map.of)} items` : `${number(map.of)} items`;
  return panel(
    "Embedding map",
    { note: `principal components, ${percent(map.variance[0] + map.variance[1])} of the variance; ${shown} of ${number(classes.length)} classes`, beside: pick },
    h("div", { class: "chart" }, view.element, tip),
    h("datalist", { id: "map-classes" }, classes.slice(0, 2000).map((name) => h("option", { value: name }))),
  );
}

function small(items, item) {
  const element = items.show(item);
  element.setAttribute("class", "mini");
  return element;
}

const bounds = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

/** The place of the spot under the pointer, -1 where there is none within a few pixels. */
function nearest(spots, x, y) {
  let best = -1;
  let distance = 12 ** 2;
  spots.forEach(([left, top], place) => {
    const here = (left - x) ** 2 + (top - y) ** 2;
    if (here < distance) [best, distance] = [place, here];
  });
  return best;
}
