"""The colours of all pictures; the pages' style sheets define the same ones for light and dark mode."""

CURVE, INK, MUTED, GRID, CARD = "#1f6fb2", "#1b1f24", "#59626d", "#eceff2", "#ffffff"
#: Bars of settings, and the second line of a chart.
SET, SECOND = "#6b4fbb", "#c2410c"
#: Colours of marks side by side, without the curve's blue.
MARKS = ("#c2410c", "#6b4fbb", "#0f766e", "#b8285f", "#8a6d00", "#3b4cc0", "#5b7f00", "#7a4a2b")
#: The same on a dark page, in the same order.
DARK_MARKS = ("#ff9b62", "#a894f0", "#4fc3b5", "#f288b0", "#d9bb4a", "#93a4f5", "#a9cf55", "#d0a184")
