/** The API key: asked for when the server wants one, kept in this tab alone, sent with each request. */

import { fill, h } from "./dom.js";
import { key, onUnauthorised } from "./rest.js";

let asking = null; // the promise of the dialog that is open

/** Install the button of the bar; `changed` is called when another key is in use. */
export function installKey(changed) {
  const button = document.getElementById("key");
  const label = () => {
    button.textContent = key.get() ? "Key ✓" : "Key";
    button.setAttribute("aria-label", key.get() ? "API key: given; change" : "API key: none; enter");
  };
  button.addEventListener("click", async () => {
    if (await ask("")) changed();
    label();
  });
  onUnauthorised(async () => {
    asking ??= ask(key.get() ? "The server does not know this key: it was revoked, has expired, or is another server's." : "This server needs an API key.");
    const given = await asking;
    asking = null;
    label();
    return given;
  });
  label();
}

/** Whether another key is in use now. */
function ask(why) {
  const field = h("input", { type: "password", name: "key", autocomplete: "off", spellcheck: "false", placeholder: "raydml_…", value: key.get() ?? "" });
  const dialog = h("dialog", { "aria-labelledby": "key-title" });
  return new Promise((resolve) => {
    const close = (changed) => {
      dialog.remove();
      resolve(changed);
    };
    const keep = (event) => {
      event.preventDefault();
      key.set(field.value.trim());
      close(true);
    };
    fill(
      dialog,
      h(
        "form",
        { onsubmit: keep },
        h("h2", { id: "key-title" }, "API key"),
        h("p", { class: "muted" }, why || "Made by ", !why && h("code", {}, "raydml keys create"), !why && ". It stays in this tab and is forgotten with it."),
        h("label", { class: "field" }, "Key", field),
        h("div", { class: "row" }, h("button", { type: "button", onclick: () => close(false) }, "Not now"), h("button", { class: "primary" }, "Use this key")),
      ),
    );
    dialog.addEventListener("cancel", () => close(false));
    document.body.append(dialog);
    dialog.showModal();
    field.focus();
  });
}

/** Ask before something that cannot be undone; resolves to the form's values, or null. */
export function confirm(title, text, action, fields = []) {
  const dialog = h("dialog", { "aria-labelledby": "confirm-title" });
  return new Promise((resolve) => {
    const close = (answer) => {
      dialog.remove();
      resolve(answer);
    };
    const act = (event) => {
      event.preventDefault();
      close(Object.fromEntries(new FormData(event.target)));
    };
    fill(
      dialog,
      h(
        "form",
        { onsubmit: act },
        h("h2", { id: "confirm-title" }, title),
        h("p", { class: "muted" }, text),
        fields,
        h("div", { class: "row" }, h("button", { type: "button", onclick: () => close(null) }, "Back"), h("button", { class: "primary" }, action)),
      ),
    );
    dialog.addEventListener("cancel", () => close(null));
    document.body.append(dialog);
    dialog.showModal();
  });
}
