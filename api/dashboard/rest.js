/** Questions to /v1, with the caller's key: documents, pages of lists, and streams that go on where they broke off. */

const KEY = "raydml.key";
const LONGEST_WAIT = 10000; // milliseconds between two tries of a stream

/** Kept until the tab is closed. */
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

let askForKey = async () => false;

/** What is done when the server wants a key: resolves to whether one was given. */
export function onUnauthorised(act) {
  askForKey = act;
}

/** The server's own words. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? problem.title ?? `the server answered ${status}`);
    this.status = status;
    this.errors = problem.errors ?? [];
    this.request = problem.request_id ?? null;
  }
}

/** The answer to one request. Throws Refused. */
export async function send(method, path, { query = {}, body, type, headers = {}, signal } = {}) {
  const url = new URL(path, location.origin);
  for (const [name, value] of Object.entries(query)) {
    for (const one of [value].flat()) if (one !== null && one !== undefined && one !== "") url.searchParams.append(name, one);
  }
  const said = { ...headers };
  if (body !== undefined) said["Content-Type"] = type ?? "application/json";
  if (method !== "GET") said["Idempotency-Key"] = once();
  for (;;) {
    const token = key.get();
    const answer = await fetch(url, {
      method,
      headers: token ? { ...said, Authorization: `Bearer ${token}` } : said,
      body: body === undefined || type ? body : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
    });
    if (answer.ok) return answer;
    if (answer.status === 401 && (token !== key.get() || (await askForKey()))) continue;
    throw new Refused(answer.status, await answer.json().catch(() => ({})));
  }
}

/** The document at a path. */
export const get = async (path, query, signal) => (await send("GET", path, { query, signal })).json();

/** The document that a change answers; null where it answers none. */
export async function post(path, body, options = {}) {
  const answer = await send(options.method ?? "POST", path, { ...options, body });
  return answer.status === 204 ? null : answer.json();
}

/** All items of a list that is paged by cursors, `most` of them. */
export async function items(path, query = {}, most = 1000, signal) {
  const found = [];
  let cursor = null;
  do {
    const page = await get(path, { ...query, limit: Math.min(most, 200), cursor }, signal);
    found.push(...page.items);
    cursor = page.next_cursor;
  } while (cursor && found.length < most);
  return found;
}

/** Jobs that succeeded, and sweeps, whose runs are those of their winners; the newest first. */
export async function succeeded(most, signal) {
  const [jobs, sweeps] = await Promise.all(["/v1/jobs", "/v1/sweeps"].map((path) => items(path, { state: "succeeded" }, most, signal)));
  return [...jobs, ...sweeps].sort((a, b) => b.created_at.localeCompare(a.created_at));
}

/**
 * Follow a stream of server-sent events to its end, across broken connections: `take(document)` for each, in order.
 * Resolves to what the end says. (EventSource sends no headers, and so no key.) A hidden tab lets go of its streams, as a
 * browser opens but six connections to a server, and goes on where it was when it is seen again.
 */
export async function follow(path, { after = 0, query = {}, signal, take, lost = () => {} }) {
  let last = after;
  let wait = 500;
  while (!signal.aborted) {
    await seen(signal);
    const gone = hiding();
    try {
      const headers = { Accept: "text/event-stream" };
      const answer = await send("GET", path, { query: { ...query, after: last }, headers, signal: AbortSignal.any([signal, gone.signal]) });
      for await (const { id, event, data } of frames(answer.body)) {
        wait = 500;
        lost(false);
        if (event === "end") return JSON.parse(data);
        if (id !== null) last = Number(id);
        if (data) take(JSON.parse(data));
      }
    } catch (error) {
      if (signal.aborted) break;
      if (error instanceof Refused && error.status < 500 && ![408, 429].includes(error.status)) throw error;
    } finally {
      gone.forget();
    }
    if (gone.signal.aborted) continue;
    lost(true);
    await new Promise((resolve) => setTimeout(resolve, wait));
    wait = Math.min(2 * wait, LONGEST_WAIT);
  }
  return null;
}

/** A signal that aborts when the tab is hidden. */
function hiding() {
  const controller = new AbortController();
  const look = () => document.hidden && controller.abort();
  document.addEventListener("visibilitychange", look);
  return { signal: controller.signal, forget: () => document.removeEventListener("visibilitychange", look) };
}

/** Resolves when the tab can be seen, or the signal aborts. */
async function seen(signal) {
  while (document.hidden && !signal.aborted) {
    await new Promise((resolve) => {
      document.addEventListener("visibilitychange", resolve, { once: true });
      signal.addEventListener("abort", resolve, { once: true });
    });
  }
}

/** Events of a stream (WHATWG HTML, 9.2.6); comments, which say that the server is there, are events without data. */
async function* frames(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) yield frame(part);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function frame(text) {
  const found = { id: null, event: null, data: "" };
  for (const line of text.split("\n")) {
    const colon = line.indexOf(":");
    const name = line.slice(0, colon);
    if (colon > 0 && name in found) found[name] = line.slice(colon + 1).replace(/^ /, "");
  }
  return found;
}

/** A name of one change, under which it is done once. `randomUUID` is there on https and loopback alone. */
function once() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
