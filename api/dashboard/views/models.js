/** Registered models, the newest first. */

import { empty, fill, h, heading, panel, table } from "../dom.js";
import { ago, bytes, share, short, when } from "../format.js";
import { items } from "../rest.js";

export async function show(place, { signal }) {
  const found = await items("/v1/models", {}, 1000, signal);
  const columns = [
    ["Name", (model) => [h("strong", {}, model.name), h("span", { class: "sub mono" }, model.id)], { class: "title" }],
    ["Aliases", (model) => model.aliases.map((alias) => [h("span", { class: "label" }, alias), " "])],
    ["MAP@R", (model) => share(model.metrics.map_at_r), { class: "number" }],
    ["Recall@1", (model) => share(model.metrics.recall_at_1 ?? model.metrics.precision_at_1), { class: "number" }],
    ["Dimension", (model) => String(model.dimension), { class: "number" }],
    ["Size", (model) => bytes(model.files.reduce((sum, file) => sum + file.size, 0)), { class: "number" }],
    ["Weights", (model) => h("span", { class: "mono", title: model.sha256 }, short(model.sha256))],
    ["From", (model) => (model.source.startsWith("job_") ? h("a", { href: `#/jobs/${model.source}` }, "job") : model.source)],
    ["Registered", (model) => h("span", { title: when(model.created_at) }, `${ago(model.created_at)} by ${model.created_by}`)],
  ];
  fill(place, heading("Models"), panel("Registered models", {}, found.length ? table("Models", columns, found, { class: "cards" }) : empty("No model is registered. POST /v1/models keeps the model of a job that succeeded.")));
}
