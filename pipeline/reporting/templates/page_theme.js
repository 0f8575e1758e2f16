"use strict";
// The page's colours: as the system has them, light, or dark; paper is always light.

const THEMES = ["auto", "light", "dark"];

/** Dress the page; charts come in two versions, which follow it. */
function dress(theme) {
  document.documentElement.dataset.theme = theme;
  const media = { auto: "(prefers-color-scheme: dark)", light: "not all", dark: "all" }[theme];
  for (const source of document.querySelectorAll("picture source")) source.media = media;
}

const themeButton = document.getElementById("theme");
let theme = THEMES[0];
themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  themeButton.querySelector("span").textContent = theme;
  dress(theme);
});
addEventListener("beforeprint", () => dress("light"));
addEventListener("afterprint", () => dress(theme));
