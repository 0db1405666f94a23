/** What happened to a job, the newest first, in words. */

import { fill, h, panel } from "../dom.js";
import { clock, duration, number, share, short, when } from "../format.js";

const MOST = 300;

export function showEvents(board) {
  const list = h("ol", { class: "events", tabindex: "0", "aria-label": "Events, the newest first" });
  const found = [];
  let waiting = null;
  board.listeners.add((event) => {
    found.unshift(event);
    found.length = Math.min(found.length, MOST);
    waiting ??= setTimeout(() => {
      waiting = null;
      fill(list, found.map(line));
    }, 50);
  });
  return panel("Events", {}, list);
}

function line(event) {
  const [text, kind = ""] = words(event);
  return h("li", { class: kind }, h("time", { datetime: event.time, title: when(event.time) }, clock(event.time)), h("span", {}, text));
}

/** An event as a line, and whether it is good, bad or worth a look. */
function words({ type, data }) {
  switch (type) {
    case "state": {
      const why = data.reason?.message ? `: ${data.reason.message}` : "";
      return [`${data.to}${why}`, { succeeded: "good", failed: "bad", recovering: "warn" }[data.to]];
    }
    case "membership": {
      const whom = data.members?.length ? ` of ${data.members.join(", ")}` : "";
      const kind = ["death", "lost"].includes(data.cause) ? "bad" : { join: "good", broken: "warn" }[data.cause] ?? "";
      return [`Step ${data.step}: ${data.cause}${whom}, ${data.before} → ${data.after} workers, ${duration(data.down)} down`, kind];
    }
    case "checkpoint":
      return [`Checkpoint of step ${data.step} (${short(data.state_sha256, 8)})`];
    case "evaluation":
      return [`Step ${data.step}: MAP@R ${share(data.metrics.map_at_r)} on validation`];
    case "watch":
      return [`Step ${data.step}: ${data.rule}: ${data.message ?? ""}`, "warn"];
    case "trial":
      return trial(data);
    case "verb":
      return [`${data.verb} was asked for by ${data.by}${data.workers ? ` (${data.workers.min}–${data.workers.max} workers)` : ""}`];
    case "attempt":
      return [`Attempt ${data.attempt}${data.workers ? ` with ${data.workers} workers` : ""}`];
    default:
      return [`${type} ${JSON.stringify(data)}`];
  }
}

/** What happened in the study of a sweep. */
function trial({ event, trial: name, configuration, step, score, until, values, reason, ...data }) {
  switch (event) {
    case "created":
      return [`#${configuration}: ${Object.entries(values).map(([field, value]) => `${field} ${typeof value === "number" ? number(value) : JSON.stringify(value)}`).join(", ")}`];
    case "promoted":
      return [`#${configuration} goes on to step ${until}`];
    case "winner":
      return [`#${configuration} won with ${share(score)} at step ${step}`, "good"];
    case "failed":
      return [`Trial ${name} failed: ${reason ?? ""}`, "bad"];
    case "trained":
    case "paused":
    case "stopped":
      return [`Trial ${name} ${event} at step ${step}`];
    default:
      return [`${event} ${JSON.stringify({ trial: name, configuration, step, ...data })}`];
  }
}
