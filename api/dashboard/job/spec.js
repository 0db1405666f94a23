/** The whole spec of a job, with the defaults. */

import { fill, h, panel } from "../dom.js";
import { yaml } from "../yaml.js";

export async function showSpec(place, board) {
  fill(place, panel("Spec", { note: "with all defaults", beside: h("a", { class: "button small", href: `#/submit?from=${board.id}` }, "New job from this") }, h("pre", { tabindex: "0" }, yaml(board.job.spec))));
}
