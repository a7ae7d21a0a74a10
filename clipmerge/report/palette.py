"""Colours and markers of every picture; the pages' style sheets define the same colours for light
and dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

CURVE, INK, MUTED, GRID, CARD = "#1f6fb2", "#1b1f24", "#59626d", "#eceff2", "#ffffff"
#: Bars of settings, and the second line of a chart.
SET, SECOND = "#6b4fbb", "#c2410c"
#: Colours of recipes, without the curve's blue.
MARKS = ("#c2410c", "#6b4fbb", "#0f766e", "#b8285f", "#8a6d00", "#3b4cc0", "#5b7f00", "#7a4a2b")
#: The same on a dark page, in the same order.
DARK_MARKS = (
    "#ff9b62",
    "#a894f0",
    "#4fc3b5",
    "#f288b0",
    "#d9bb4a",
    "#93a4f5",
    "#a9cf55",
    "#d0a184",
)
#: Shapes of recipes, as matplotlib names them; the circle is the alpha curve's.
SHAPES = ("D", "^", "s", "P", "v", "X", "<", "p", ">", "h")

#: The shipped recipes; a recipe's place here gives it one colour and one shape in all pictures of
#: the project.
RECIPES = (
    "auto",
    "straggler-sparse",
    "lines",
    "monosoup",
    "tpgm",
    "wise-ft-id",
    "straggler-outlier",
    "wise-ft",
    "monosoup-energy",
    "fisher",
    "regmean",
    "model-stock",
    "uniform-soup",
    "greedy-soup",
    "ties",
    "dare",
    "della",
    "breadcrumbs",
    "task-arithmetic",
    "dg-hard",
)


def mark_styles(names: Sequence[str]) -> list[tuple[str, str]]:
    """Colour and shape of each name: a shipped recipe's own, whatever follows it in brackets, or
    the first free.
    """
    known = [
        RECIPES.index(recipe) if (recipe := name.partition(" (")[0]) in RECIPES else None
        for name in names
    ]
    used = {place for place in known if place is not None}
    others = [*range(len(RECIPES), math.lcm(len(MARKS), len(SHAPES))), *range(len(RECIPES))]
    styles = []
    for place in known:
        if place is None:
            free = [other for other in others if other not in used] or others
            colours, shapes = ({other % len(kinds) for other in used} for kinds in (MARKS, SHAPES))
            place = min(
                free,
                key=lambda other: (
                    2 * (other % len(MARKS) in colours) + (other % len(SHAPES) in shapes)
                ),
            )
            used.add(place)
        styles.append((MARKS[place % len(MARKS)], SHAPES[place % len(SHAPES)]))
    return styles
