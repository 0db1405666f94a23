/** The end of what the newest attempt writes. */

import { h, panel } from "../dom.js";
import { follow } from "../rest.js";
import { TERMINAL } from "./state.js";

const MOST = 500; // lines

export function showLog(board) {
  const { signal, id } = board;
  const log = h("pre", { class: "log", tabindex: "0", role: "log", "aria-label": "The end of the log", "aria-live": "off" });
  let fresh = [];

  function draw() {
    const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 20;
    for (const text of fresh.slice(-MOST)) log.append(text, "\n");
    fresh = [];
    while (log.childNodes.length > 2 * MOST) log.firstChild.remove();
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  async function read() {
    let attempt = board.job.attempt;
    while (!signal.aborted) {
      const end = await follow(`/v1/jobs/${id}/logs`, {
        query: { attempt },
        signal,
        take: ({ text }) => {
          if (!fresh.length) setTimeout(draw, 100);
          fresh.push(text);
        },
      });
      if (end?.next_attempt) attempt = end.next_attempt;
      else if (!end || TERMINAL.has(end.state)) return;
      else await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  }

  if (board.job.attempt) read().catch(() => {});
  else {
    const started = (event) => {
      if (event.type !== "attempt") return;
      board.listeners.delete(started);
      board.job.attempt = event.data.attempt;
      read().catch(() => {});
    };
    board.listeners.add(started);
  }
  return panel("Log", { note: "the newest attempt" }, log);
}
