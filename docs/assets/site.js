// The theme wraps wide tables in a region that scrolls, which the keyboard reaches too, and calls the button of every code
// block a navigation without a name.
addEventListener("load", () => {
  document.querySelectorAll(".md-typeset__scrollwrap").forEach(region => { region.tabIndex = 0; });
  document.querySelectorAll(".md-code__nav").forEach((buttons, number) => { buttons.ariaLabel = `Code ${number + 1}`; });
});
