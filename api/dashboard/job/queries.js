/** Queries with their neighbours, the worst first, some at a time. */

import { empty, fill, h, panel } from "../dom.js";
import { number, share, words } from "../format.js";
import { tile } from "./pictures.js";

const AT_ONCE = 12;

export function worstQueries(queries, items) {
  let text = "";
  let wrongOnly = false;
  let most = AT_ONCE;
  const list = h("div", {});
  const filter = h("input", { type: "search", placeholder: "Class or id", "aria-label": "Filter queries by class or id", oninput: (event) => { text = event.target.value.toLowerCase(); most = AT_ONCE; draw(); } });
  const wrong = h("label", { class: "note" }, h("input", { type: "checkbox", onchange: (event) => { wrongOnly = event.target.checked; most = AT_ONCE; draw(); } }), " nearest one wrong");

  function matches(place) {
    const item = queries.items[place];
    const said = `${items.ids[item]} ${items.labels[item]}`.toLowerCase();
    return said.includes(text) && !(wrongOnly && queries.values.precision_at_1[place] === 1);
  }

  function draw() {
    const found = queries.items.map((_, place) => place).filter(matches);
    const more = found.length > most && h("button", { type: "button", onclick: () => { most += 2 * AT_ONCE; draw(); } }, `More (${number(found.length - most)})`);
    fill(list, found.length ? h("ol", { class: "queries" }, found.slice(0, most).map((place) => line(queries, items, place))) : empty("No query matches."), more);
  }

  draw();
  const note = `by ${words(queries.ordered_by)}; ${number(queries.items.length)} of ${number(queries.of)} queries are kept, the worst among them`;
  return panel("Worst queries", { note, beside: h("div", { class: "row" }, wrong, filter) }, list);
}

function line(queries, items, place) {
  const item = queries.items[place];
  return h("li", {}, asked(items, item, [[words(queries.ordered_by), share(queries.values[queries.ordered_by][place])]]), h("ol", { class: "pictures", "aria-label": "Neighbours, the nearest first" }, neighbours(queries, items, place)));
}

/** The neighbours of a query as tiles. */
export function neighbours(queries, items, place) {
  const label = items.labels[queries.items[place]];
  return queries.neighbours[place].map((near, rank) => tile(items, near, { right: items.labels[near] === label, score: queries.scores[place][rank] }));
}

/** A query with what is said of it. */
export function asked(items, item, facts) {
  return h("div", { class: "asked" }, h("ul", {}, tile(items, item, { query: true })), h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}
