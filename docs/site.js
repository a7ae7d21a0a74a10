// The theme wraps wide tables in a region that scrolls; the keyboard reaches it too.
addEventListener("load", () => document.querySelectorAll(".md-typeset__scrollwrap").forEach(region => { region.tabIndex = 0; }));
