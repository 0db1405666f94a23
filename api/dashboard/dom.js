/** Elements from tags, attributes and children. What is said is text: nothing is ever parsed as markup. */

/**
 * `h("button", {class: "small", onclick: act}, "Pause")`. Attributes that are null or false are left out, functions
 * are listeners, `vars` are CSS custom properties. Children that are null or false are left out, lists are flattened.
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...shown(children));
  return element;
}

/** Put these in place of what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren(...shown(children));
  return element;
}

function shown(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

/** Say something to whoever watches or listens; it goes away by itself. */
export function say(text, kind = "note") {
  const place = document.getElementById("said");
  const line = h("p", { class: kind }, text);
  place.append(line);
  setTimeout(() => line.remove(), kind === "wrong" ? 12000 : 5000);
}

/** A heading with what belongs beside it. */
export function heading(text, ...beside) {
  return h("div", { class: "heading" }, h("h1", { tabindex: "-1" }, text), h("div", { class: "beside" }, beside));
}

/** A part of a page under a heading of its own. */
export function panel(title, attributes, ...children) {
  const id = `panel-${title.toLowerCase().replace(/[^a-z0-9]+/g, "-")}`;
  const { note, beside, class: kind = "", ...rest } = attributes;
  return h(
    "section",
    { class: `panel ${kind}`, "aria-labelledby": id, ...rest },
    h("div", { class: "panel-head" }, h("h2", { id }, title), note && h("span", { class: "note" }, note), beside),
    children,
  );
}

/** What stands where there is nothing. */
export function empty(text, ...children) {
  return h("div", { class: "empty" }, h("p", {}, text), children);
}

/** A table: columns are [name, cell of a row, options]; a name in the options' `class` styles the cells. */
export function table(caption, columns, rows, attributes = {}) {
  const head = columns.map(([name, , { class: kind = "", hint } = {}]) =>
    h("th", { scope: "col", class: kind, title: hint }, name),
  );
  const line = (row) =>
    h(
      "tr",
      attributes.row?.(row) ?? {},
      columns.map(([name, cell, { class: kind = "" } = {}]) => h("td", { class: kind, "data-name": name }, cell(row))),
    );
  return h(
    "div",
    { class: `scroll ${attributes.class ?? ""}`, tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: "hidden" }, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows.map(line))),
  );
}
