/** The items that a run's views name: id, class, and a small picture from a sheet of many. */

import { h } from "../dom.js";
import { get, send } from "../rest.js";

const known = new Map(); // job -> promise of its items, for as long as the page lives

/** The items of a job's evaluation, or null where the run wrote none. */
export function itemsOf(job) {
  if (!known.has(job)) known.set(job, get(`/v1/jobs/${job}/artifacts/views/items.json`).then((found) => new Items(job, found)).catch(() => null));
  return known.get(job);
}

class Items {
  #sheets = new Map();

  constructor(job, found) {
    this.job = job;
    Object.assign(this, found);
    this.places = new Map(found.ids.map((id, place) => [String(id), place]));
  }

  /** The number of the item with this id, or undefined. */
  place(id) {
    return this.places.get(String(id));
  }

  get hasPictures() {
    return this.pictures > 0;
  }

  /** What stands for an item: its picture, its text, or its id. */
  show(place) {
    if (!(place < this.pictures)) return h("div", { class: "text" }, this.texts?.[place] ?? this.ids[place] ?? "?");
    const element = h("canvas", { width: this.side, height: this.side, role: "img", "aria-label": this.labels[place] });
    this.draw(element.getContext("2d"), place, 0, 0, this.side);
    return element;
  }

  /** Draw a picture into a context, when its sheet is there. */
  async draw(context, place, x, y, size) {
    const { side, columns } = this;
    const sheet = await this.sheet(Math.floor(place / columns ** 2));
    const within = place % columns ** 2;
    context.drawImage(sheet, (within % columns) * side, Math.floor(within / columns) * side, side, side, x, y, size, size);
  }

  sheet(number) {
    if (!this.#sheets.has(number)) {
      const loaded = send("GET", `/v1/jobs/${this.job}/artifacts/views/pictures-${number}.webp`)
        .then((answer) => answer.arrayBuffer())
        .then((content) => createImageBitmap(new Blob([content], { type: "image/webp" })));
      this.#sheets.set(number, loaded);
    }
    return this.#sheets.get(number);
  }
}

/** A neighbour, right or wrong; or the query itself. */
export function tile(items, place, { right, score, query = false } = {}) {
  const kind = query ? "query" : right ? "right" : "wrong";
  const label = items.labels[place];
  const said = query ? `Query: ${label}` : `${label}, ${right ? "right" : "wrong"}, score ${score?.toFixed(3)}`;
  return h(
    "li",
    { class: `tile ${kind}`, title: `${items.ids[place]} (${label})` },
    items.show(place),
    !query && h("span", { class: "sign", "aria-hidden": "true" }, right ? "✓" : "✕"),
    h("span", { class: "name" }, label),
    score !== undefined && h("span", { class: "score" }, score.toFixed(3)),
    h("span", { class: "hidden" }, said),
  );
}
