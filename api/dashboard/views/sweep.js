/** One sweep: how far it is, its configurations as lines and as a leaderboard, what happened, and the winner's run. */

import { empty, fill, h, panel } from "../dom.js";
import { duration, number, share, when, words } from "../format.js";
import { showEvents } from "../job/events.js";
import { showLog } from "../job/log.js";
import { stateOf, TERMINAL } from "../job/state.js";
import { verbs } from "../job/verbs.js";
import { follow, get } from "../rest.js";
import { coordinates, fieldsOf } from "../sweep/coordinates.js";
import { leaderboard, said } from "../sweep/leaderboard.js";
import { mostOf } from "../sweep/state.js";

const EVERY = 3000; // milliseconds between two looks at trials that train
const MOST = 1000; // configurations that are shown

export async function show(place, { job: id, signal }) {
  const [job, trials] = await Promise.all([get(`/v1/sweeps/${id}`, {}, signal), get(`/v1/sweeps/${id}/trials`, { limit: MOST }, signal)]);
  const board = { id, job, signal, listeners: new Set() };
  const head = h("div", { class: "stack" });
  const tiles = h("dl", { class: "facts large" });
  const best = h("p", { class: "advice" });
  const list = h("div", {});
  const chart = coordinates({ changed: () => ranked(), signal });
  let found = trials;

  function ranked() {
    const kept = chart.kept();
    const focus = document.activeElement?.dataset?.row;
    const lit = (row) => chart.lit(row);
    fill(list, kept.length ? leaderboard(found, kept, { fields: fieldsOf(found.items), steps: board.job.spec.train.steps, lit }) : empty(found.total ? "No configuration lies within all ranges." : "No configuration yet."));
    if (focus) list.querySelector(`[data-row="${focus}"]`)?.focus();
  }

  function draw() {
    fill(head, title(board), winner(board.job));
    fill(tiles, progress(board.job, found).map(([name, value, more]) => h("div", {}, h("dt", {}, name), h("dd", {}, value, more && h("small", {}, more)))));
    best.hidden = !found.verdict || !found.items.some((trial) => trial.score !== null);
    fill(best, found.verdict && `${found.verdict[0].toUpperCase()}${found.verdict.slice(1)}.`);
    chart.set(found);
    ranked();
  }

  board.refresh = async () => {
    const asked = await Promise.all([get(`/v1/sweeps/${id}`, {}, signal), get(`/v1/sweeps/${id}/trials`, { limit: MOST }, signal)]);
    place.classList.remove("lost");
    const same = JSON.stringify(asked) === JSON.stringify([board.job, found]);
    [board.job, found] = asked;
    if (!same) draw();
  };
  const look = () => board.refresh().catch(() => signal.aborted || place.classList.add("lost"));

  fill(
    place,
    head,
    h(
      "div",
      { class: "columns" },
      h(
        "div",
        { class: "stack" },
        panel("Progress", {}, tiles),
        panel("Fields and scores", { note: "drag along an axis to keep a range, click it to let go; by keyboard: arrows and Escape" }, h("div", { class: "scroll" }, chart.element)),
        panel("Leaderboard", { note: `${words(job.spec.tune.objective)} on validation classes; those that took all steps first` }, best, list),
      ),
      h("div", { class: "stack" }, showEvents(board), showLog(board)),
    ),
  );
  draw();
  follow(`/v1/sweeps/${id}/events`, { signal, lost: (lost) => place.classList.toggle("lost", lost), take: (event) => taken(board, event, look) }).catch((error) => {
    if (!signal.aborted) throw error;
  });
  const timer = setInterval(() => document.hidden || TERMINAL.has(board.job.state) || look(), EVERY);
  signal.addEventListener("abort", () => clearInterval(timer));
}

/** Events come in order; the sweep is asked for anew once for all that came together. */
function taken(board, event, look) {
  for (const listener of board.listeners) listener(event);
  clearTimeout(board.later);
  board.later = setTimeout(() => board.signal.aborted || look(), 200);
}

function title(board) {
  const { job } = board;
  const reason = job.reason && job.state !== "succeeded" && h("p", { class: job.state === "failed" ? "problem" : "advice", role: job.state === "failed" ? "alert" : null }, job.reason.message);
  return [h("div", { class: "heading" }, h("h1", { tabindex: "-1" }, job.name), h("span", { role: "status" }, stateOf(job)), h("div", { class: "beside" }, verbs(board))), reason];
}

/** What the sweep came to: the values that won, and the run that they were trained in. */
function winner({ id, result, spec }) {
  if (!result?.winner) return null;
  const { configuration, values, score } = result.winner;
  const facts = [
    ["Configuration", `#${configuration}`],
    [`${words(spec.tune.objective)}, validation`, share(score)],
    [`${words(spec.tune.objective)}, test`, share(result.metrics?.[spec.tune.objective])],
    ...Object.entries(values).map(([name, value]) => [name, said(value)]),
  ];
  const links = h("div", { class: "row" }, h("a", { class: "button small primary", href: `#/jobs/${id}/evaluation` }, "The winner's run"), h("a", { class: "button small", href: `#/submit?best=${id}` }, "New job of its spec"));
  return panel("Winner", { beside: links }, h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))));
}

function progress(job, { items, total, best, objective }) {
  const counts = (state) => items.filter((trial) => trial.state === state).length;
  const ahead = items.find((trial) => trial.configuration === best);
  const { promoted = 0, copied = 0 } = job.progress?.trials ?? {};
  const { seeds } = job.spec.tune;
  const begun = job.started_at && (new Date(job.finished_at ?? Date.now()) - new Date(job.started_at)) / 1000;
  return [
    ["Configurations", number(total), `of ${mostOf(job)}, ${number(seeds)} ${seeds === 1 ? "seed" : "seeds"} each`],
    ["Train now", number(counts("running")), `${number(job.workers.max)} trials at once, at most`],
    ["Trained", number(counts("trained")), "took all steps"],
    ["Given up", number(counts("stopped") + counts("paused") + counts("failed")), `${number(counts("failed"))} failed, ${number(promoted + copied)} went on`],
    ["Best so far", share(ahead?.score), ahead ? `${words(objective)}, #${best}` : words(objective)],
    ["Took", duration(begun), job.started_at ? `since ${when(job.started_at)}` : "not begun"],
  ];
}
