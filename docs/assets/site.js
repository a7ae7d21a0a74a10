// Wide tables and formulas are in regions that scroll, which the keyboard is to reach too; and the theme calls the
// button of every code block a navigation without a name.
addEventListener("load", () => {
  document.querySelectorAll(".md-typeset__scrollwrap, .formula").forEach(region => { region.tabIndex = 0; });
  document.querySelectorAll(".md-code__nav").forEach((buttons, number) => { buttons.ariaLabel = `Code ${number + 1}`; });
});
