"""The colours of all pictures; the pages' style sheets define the same ones for light and dark mode."""

CURVE, INK, MUTED, GRID = "#1f6fb2", "#1b1f24", "#59626d", "#eceff2"
#: Colours of marks side by side, without the curve's blue.
MARKS = ("#c2410c", "#6b4fbb", "#0f766e", "#b8285f", "#8a6d00", "#3b4cc0", "#5b7f00", "#7a4a2b")
