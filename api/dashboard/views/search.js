/** A collection, and an image, a text or a point to find the neighbours of. */

import { itemsOf } from "../job/pictures.js";
import { empty, fill, h, heading, panel } from "../dom.js";
import { number, words } from "../format.js";
import { get, post, succeeded } from "../rest.js";

const KINDS = { image: "Image", text: "Text", id: "Point" };

export async function show(place, { query, signal }) {
  const names = await collections(signal);
  if (!names.length) {
    fill(place, heading("Search"), panel("Collections", {}, empty("There is no collection yet: a job whose spec says index: {collection: NAME} makes one.")));
    return;
  }
  const state = { kind: "image", image: null, name: names.includes(query.get("collection")) ? query.get("collection") : names[0], jobs: null };
  const choose = h("select", { name: "collection", onchange: () => select(choose.value) }, names.map((name) => h("option", { value: name, selected: name === state.name }, name)));
  const about = h("p", { class: "note" });
  const k = h("input", { type: "number", name: "k", min: 1, max: 100, value: 20 });
  const filter = h("input", { name: "filter", placeholder: '{"label": "a"}', spellcheck: "false" });
  const kinds = h("div", { class: "segments", role: "group", "aria-label": "Search by" });
  const asked = h("div", {});
  const found = h("div", { "aria-live": "polite" }, empty("Drop an image, or choose another way to ask."));
  const text = h("input", { name: "text", placeholder: "What to look for", "aria-label": "What to look for" });
  const id = h("input", { name: "id", placeholder: "Id of a point", "aria-label": "Id of a point" });
  const drop = dropZone((file) => { state.image = file; search(); });

  function draw() {
    fill(kinds, Object.entries(KINDS).map(([kind, name]) => h("button", { type: "button", "aria-pressed": String(kind === state.kind), onclick: () => { state.kind = kind; draw(); } }, name)));
    fill(asked, { image: drop, text: h("label", { class: "field" }, "Text", text), id: h("label", { class: "field" }, "Point", id) }[state.kind]);
  }

  async function select(name) {
    state.name = name;
    history.replaceState(null, "", `#/search?collection=${encodeURIComponent(name)}`);
    const described = await get(`/v1/collections/${encodeURIComponent(name)}`, {}, signal);
    fill(about, `${number(described.points)} points of dimension ${described.dimension}, ${words(described.metric)}${described.model_digest ? `, model ${described.model_digest.slice(0, 12)}` : ", without a model: search by point"}`);
    state.metric = described.metric;
    state.items = await picturesOf(described.model_digest, signal);
    state.kind = !described.model_digest ? "id" : state.items?.texts && !state.items.hasPictures ? "text" : "image";
    draw();
  }

  async function search(event) {
    event?.preventDefault();
    const path = `/v1/collections/${encodeURIComponent(state.name)}/search`;
    const most = Number(k.value);
    fill(found, h("p", { class: "muted" }, "Searching …"));
    try {
      const wanted = filter.value.trim() ? JSON.parse(filter.value) : undefined;
      const began = performance.now();
      let answer;
      if (state.kind === "image") {
        if (!state.image) return fill(found, empty("Drop an image first."));
        answer = await post(path, { images: [await base64(state.image)], k: most, filter: wanted });
      } else answer = await post(path, { [state.kind === "text" ? "texts" : "ids"]: [state.kind === "text" ? text.value : idOf(id.value)], k: most, filter: wanted });
      const took = performance.now() - began;
      fill(found, h("p", { class: "note" }, `${number(answer.results[0].length)} neighbours in ${Math.round(took)} ms, the nearest first`), h("ol", { class: "hits" }, answer.results[0].map((hit) => shown(hit, state))));
    } catch (error) {
      if (signal.aborted) return null;
      fill(found, h("p", { class: "problem", role: "alert" }, error.message));
    }
    return null;
  }

  fill(
    place,
    heading("Search"),
    h(
      "form",
      { class: "stack", onsubmit: search },
      panel("Ask", {}, h("div", { class: "stack" }, h("div", { class: "row" }, h("label", { class: "field" }, "Collection", choose), h("label", { class: "field" }, "Neighbours", k), h("label", { class: "field" }, "Filter, JSON", filter), kinds, h("button", { class: "primary" }, "Search")), about, asked)),
      panel("Neighbours", {}, found),
    ),
  );
  draw();
  await select(state.name);
}

/** Names of collections and aliases. */
async function collections(signal) {
  const found = [];
  let after = null;
  do {
    const page = await get("/v1/collections", { after, limit: 1000 }, signal);
    found.push(...page.collections);
    after = page.next;
  } while (after);
  const { aliases } = await get("/v1/aliases", {}, signal);
  return [...found, ...Object.keys(aliases).filter((name) => !found.includes(name))];
}

/** The pictures of the job that trained this model, where one did and the caller may see jobs. */
async function picturesOf(digest, signal) {
  if (!digest) return null;
  const jobs = await succeeded(400, signal).catch(() => []);
  const job = jobs.find((one) => one.result?.model_sha256 === digest);
  return job ? itemsOf(job.id) : null;
}

function shown(hit, { items: pictures, metric }) {
  const place = pictures?.place(hit.id);
  const label = hit.payload?.label ?? hit.payload?.name ?? String(hit.id);
  const score = `${metric === "l2" ? "distance " : ""}${hit.score.toFixed(3)}`;
  const picture = place === undefined ? h("div", { class: "text" }, hit.payload?.text ?? String(hit.id)) : pictures.show(place);
  return h("li", { class: "tile", title: `${hit.id} ${JSON.stringify(hit.payload ?? {})}` }, picture, h("span", { class: "name" }, String(label)), h("span", { class: "score" }, score));
}

/** A place to drop, paste or choose an image file. */
function dropZone(take) {
  const input = h("input", { type: "file", accept: "image/*", class: "hidden", "aria-label": "Choose an image", onchange: () => input.files[0] && given(input.files[0]) });
  const preview = h("div", {}, h("strong", {}, "Drop an image here"), h("p", {}, "or press to choose one, or paste it"));
  const zone = h("label", { class: "drop" }, preview, input);
  let url = null;
  function given(file) {
    if (url) URL.revokeObjectURL(url);
    url = URL.createObjectURL(file);
    fill(preview, h("img", { src: url, alt: "The image to look for" }), h("p", {}, file.name || "pasted image"));
    take(file);
  }
  const over = (event) => {
    event.preventDefault();
    zone.classList.toggle("over", event.type === "dragover");
  };
  zone.addEventListener("dragover", over);
  zone.addEventListener("dragleave", over);
  zone.addEventListener("drop", (event) => {
    over(event);
    const file = [...event.dataTransfer.files].find((one) => one.type.startsWith("image/"));
    if (file) given(file);
  });
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    if (file && zone.isConnected) given(file);
  });
  return zone;
}

async function base64(file) {
  const content = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let start = 0; start < content.length; start += 0x8000) text += String.fromCharCode(...content.subarray(start, start + 0x8000));
  return btoa(text);
}

/** Whole numbers are ids of their own; anything else is a text. */
const idOf = (text) => (/^-?\d{1,15}$/.test(text.trim()) ? Number(text) : text.trim());
