/** All sweeps, the newest first, with what is best so far; looked at again every few seconds. */

import { empty, fill, h, heading, panel, table } from "../dom.js";
import { ago, duration, number, share, when, words } from "../format.js";
import { LIVE, stateOf } from "../job/state.js";
import { items } from "../rest.js";
import { counted } from "../sweep/state.js";

const EVERY = 3000; // milliseconds
const MOST = 400; // sweeps that are shown

export async function show(place, { signal }) {
  const list = h("div", {});
  fill(place, heading("Sweeps", h("a", { class: "button small", href: "#/submit?of=sweep" }, "New sweep")), panel("All sweeps", { note: "a sweep tries values of a spec's fields and trains the best" }, list));

  async function look() {
    const found = await items("/v1/sweeps", {}, MOST, signal);
    place.classList.remove("lost");
    const focus = document.activeElement?.getAttribute("href");
    fill(list, found.length ? sweeps(found) : empty("No sweep yet: a spec with a section tune is one.", h("a", { class: "button primary", href: "#/submit?of=sweep" }, "Submit the first one")));
    if (focus) list.querySelector(`a[href="${focus}"]`)?.focus();
  }

  await look();
  const timer = setInterval(() => document.hidden || look().catch(() => place.classList.add("lost")), EVERY);
  signal.addEventListener("abort", () => clearInterval(timer));
}

function sweeps(found) {
  const tune = (sweep) => sweep.spec.tune;
  return table(
    "Sweeps",
    [
      ["Name", (sweep) => [h("a", { href: `#/sweeps/${sweep.id}` }, sweep.name), h("span", { class: "sub mono" }, sweep.id)], { class: "title" }],
      ["State", stateOf, { class: "nowrap" }],
      ["Configurations", (sweep) => counted(sweep), { class: "number" }],
      ["Fields", (sweep) => Object.keys(tune(sweep).space).join(", ")],
      ["Chosen by", (sweep) => `${tune(sweep).algorithm.kind}${tune(sweep).scheduler.kind === "none" ? "" : `, ${tune(sweep).scheduler.kind}`}`, { class: "nowrap" }],
      ["Seeds", (sweep) => number(tune(sweep).seeds), { class: "number", hint: "trials of each configuration" }],
      ["Winner", (sweep) => (sweep.result?.winner ? `${words(tune(sweep).objective)} ${share(sweep.result.winner.score)}` : "–"), { class: "number", hint: "on validation classes" }],
      ["Took", (sweep) => (sweep.started_at ? duration((new Date(sweep.finished_at ?? Date.now()) - new Date(sweep.started_at)) / 1000) : "–"), { class: "number" }],
      ["Created", (sweep) => h("span", { title: when(sweep.created_at) }, ago(sweep.created_at)), { class: "number" }],
    ],
    found,
    { class: "cards", row: (sweep) => (LIVE.has(sweep.state) ? { class: "chosen" } : {}) },
  );
}
