/* The colours that a person chose, before anything is drawn: light, dark, or as the system says. */
"use strict";

(() => {
  const NAMES = ["system", "light", "dark"];
  const root = document.documentElement;
  const stored = () => localStorage.getItem("raydml.theme") ?? "system";
  const tell = () => document.dispatchEvent(new Event("theme"));

  function apply(name) {
    if (name === "system") delete root.dataset.theme;
    else root.dataset.theme = name;
  }

  apply(stored());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => {
      button.textContent = { system: "Auto", light: "Light", dark: "Dark" }[stored()];
      button.setAttribute("aria-label", `Colours: ${stored()}; change`);
    };
    button.addEventListener("click", () => {
      const next = NAMES[(NAMES.indexOf(stored()) + 1) % NAMES.length];
      localStorage.setItem("raydml.theme", next);
      apply(next);
      label();
      tell();
    });
    label();
  });
})();
