/** Uploaded data sets, the newest first. */

import { empty, fill, h, heading, panel, table } from "../dom.js";
import { ago, bytes, number, when } from "../format.js";
import { items } from "../rest.js";

export async function show(place, { signal }) {
  const found = await items("/v1/datasets", {}, 1000, signal);
  const kind = { ready: "succeeded", failed: "failed", uploading: "live", checking: "live" };
  const columns = [
    ["Name", (data) => [h("strong", {}, data.name), h("span", { class: "sub mono" }, `dataset:${data.id}`)], { class: "title" }],
    ["State", (data) => h("span", { class: `state ${kind[data.state]}`, title: data.problem ?? "" }, data.state)],
    ["Kind", (data) => data.report?.data_kind ?? data.kind],
    ["Items", (data) => number(data.report?.items), { class: "number" }],
    ["Classes", (data) => number(data.report?.classes), { class: "number" }],
    ["Train / validation / test", (data) => (data.report ? ["train", "validation", "test"].map((split) => number(data.report.images_by_split[split] ?? 0)).join(" / ") : "–"), { class: "number" }],
    ["Bad", (data) => number(data.report?.bad_items), { class: "number", hint: "items that cannot be used" }],
    ["Size", (data) => bytes(data.size), { class: "number" }],
    ["Created", (data) => h("span", { title: when(data.created_at) }, `${ago(data.created_at)} by ${data.created_by}`)],
  ];
  fill(place, heading("Data sets"), panel("Uploaded data", { note: "a spec names it by dataset:ID in data.path" }, found.length ? table("Data sets", columns, found, { class: "cards" }) : empty("No data set yet: raydml datasets upload FILE.")));
}
