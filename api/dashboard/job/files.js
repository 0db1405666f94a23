/** The files of a job's run, to download, and its checkpoints. */

import { empty, fill, h, panel, say, table } from "../dom.js";
import { bytes, number, short, when } from "../format.js";
import { get, send } from "../rest.js";

export async function showFiles(place, board) {
  const { id, signal } = board;
  const [files, checkpoints] = await Promise.all([all(id, signal), get(`/v1/jobs/${id}/checkpoints`, {}, signal)]);
  fill(place, h("div", { class: "columns" }, panel("Files", { note: number(files.length) }, files.length ? list(id, files) : empty("No files yet.")), panel("Checkpoints", {}, checkpoints.items.length ? saved(checkpoints.items) : empty("No checkpoints yet."))));
}

async function all(id, signal) {
  const found = [];
  let after = null;
  do {
    const page = await get(`/v1/jobs/${id}/artifacts`, { after, limit: 1000 }, signal);
    found.push(...page.items);
    after = page.next;
  } while (after);
  return found;
}

function list(id, files) {
  const name = (file) => h("button", { type: "button", class: "small", "aria-label": `Download ${file.path}`, onclick: () => download(id, file).catch((error) => say(error.message, "wrong")) }, "Download");
  return table("Files", [["Path", (file) => h("span", { class: "mono" }, file.path), { class: "title" }], ["Size", (file) => bytes(file.size), { class: "number" }], ["Changed", (file) => when(file.modified_at), { class: "nowrap" }], ["", name, { class: "number" }]], files, { class: "cards" });
}

/** With the key, which a link would not send. */
async function download(id, file) {
  const path = file.path.split("/").map(encodeURIComponent).join("/");
  const answer = await send("GET", `/v1/jobs/${id}/artifacts/${path}`);
  const url = URL.createObjectURL(await answer.blob());
  h("a", { href: url, download: file.path.split("/").at(-1) }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

function saved(items) {
  return table("Checkpoints", [["Step", (one) => number(one.step), { class: "number" }], ["State", (one) => h("span", { class: "mono", title: one.state_sha256 }, short(one.state_sha256))], ["", (one) => (one.removed_at ? h("span", { class: "muted" }, "made room") : h("span", { class: "good" }, "there"))]], items.toReversed());
}
