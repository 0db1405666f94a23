/** A plain document as YAML that people edit: blocks, with small objects and lists on one line. */

const PLAIN = /^[A-Za-z_/][A-Za-z0-9_./~ -]*$/;
const WORDS = new Set(["true", "false", "null", "yes", "no", "on", "off", "~"]);
const LINE = 88;

export function yaml(value, indent = "") {
  return Object.entries(value)
    .map(([name, one]) => {
      const flat = `${indent}${name}: ${flow(one)}`;
      const nested = one !== null && typeof one === "object" && !Array.isArray(one) && Object.keys(one).length;
      return nested && (indent === "" ? Object.keys(one).length > 3 || flat.length > LINE : flat.length > LINE) ? `${indent}${name}:\n${yaml(one, `${indent}  `)}` : `${flat}\n`;
    })
    .join("");
}

function flow(value) {
  if (Array.isArray(value)) return `[${value.map(flow).join(", ")}]`;
  if (value !== null && typeof value === "object") return `{${Object.entries(value).map(([name, one]) => `${name}: ${flow(one)}`).join(", ")}}`;
  if (typeof value === "string") return PLAIN.test(value) && !WORDS.has(value.toLowerCase()) && value.trim() === value ? value : JSON.stringify(value);
  return JSON.stringify(value);
}
