/** The address behind `#` -> the view that it names. A view is left by aborting its signal. */

import { fill, h, say } from "./dom.js";
import { installKey } from "./key.js";
import { Refused } from "./rest.js";

const PARTS = [
  ["jobs", "Jobs"],
  ["compare", "Compare"],
  ["sweeps", "Sweeps"],
  ["search", "Search"],
  ["models", "Models"],
  ["datasets", "Data"],
];

// An address -> the part of the navigation that it belongs to, and its view.
const ROUTES = [
  [/^\/jobs$/, "jobs", () => import("./views/jobs.js")],
  [/^\/jobs\/(?<job>job_[0-9a-z]+)(?:\/(?<tab>evaluation|spec|files))?$/, "jobs", () => import("./views/job.js")],
  [/^\/submit$/, "jobs", () => import("./views/submit.js")],
  [/^\/compare$/, "compare", () => import("./views/compare.js")],
  [/^\/sweeps$/, "sweeps", () => import("./views/sweeps.js")],
  [/^\/sweeps\/(?<job>job_[0-9a-z]+)$/, "sweeps", () => import("./views/sweep.js")],
  [/^\/search$/, "search", () => import("./views/search.js")],
  [/^\/models$/, "models", () => import("./views/models.js")],
  [/^\/datasets$/, "datasets", () => import("./views/datasets.js")],
];

const main = document.getElementById("main");
let leave = new AbortController();

async function show({ focus = true } = {}) {
  const [path, search = ""] = (location.hash.slice(1) || "/jobs").split("?");
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const found = ROUTES.map(([shape, part, load]) => ({ match: shape.exec(path), part, load })).find((one) => one.match);
  navigation(found?.part);
  try {
    if (!found) throw new Error(`There is no page at ${path}.`);
    const view = await found.load();
    if (signal.aborted) return;
    const place = h("div", { class: "view" });
    fill(main, place);
    scrollTo(0, 0);
    await view.show(place, { ...found.match.groups, query: new URLSearchParams(search), signal });
    if (signal.aborted) return;
    const title = place.querySelector("h1");
    document.title = title ? `${title.textContent} · raydml` : "raydml";
    if (focus) title?.focus({ preventScroll: true });
  } catch (error) {
    if (!signal.aborted) failed(error);
  }
}

function failed(error) {
  const known = error instanceof Refused;
  fill(
    main,
    h("h1", { tabindex: "-1" }, known ? "The server refused" : "This did not work"),
    h("div", { class: "problem", role: "alert" }, h("p", {}, error.message), known && error.request && h("p", { class: "note" }, `Request ${error.request}`)),
    h("p", {}, h("button", { type: "button", onclick: () => show() }, "Try again")),
  );
  document.title = "raydml";
}

function navigation(current) {
  fill(
    document.getElementById("nav"),
    PARTS.map(([name, title]) => h("a", { href: `#/${name}`, "aria-current": name === current ? "page" : null }, title)),
  );
}

addEventListener("hashchange", () => show());
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the view
  main.focus();
});
addEventListener("unhandledrejection", (event) => {
  if (event.reason?.name === "AbortError") event.preventDefault();
  else if (event.reason instanceof Refused) {
    event.preventDefault();
    say(event.reason.message, "wrong");
  }
});
installKey(() => show({ focus: false }));
show({ focus: false });
