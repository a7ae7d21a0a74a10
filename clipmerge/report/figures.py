"""The picture of a merge and that of a sweep, drawn by matplotlib in one style.

They are narrow enough to be read on a telephone. A sweep's is that of the WiSE-FT paper: mean OOD
accuracy against ID accuracy.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipmerge.planning.plan import LayerPlan
from clipmerge.planning.record import Record, Verdict
from clipmerge.report.wording import recipes_and_points
from clipmerge.types import Json

CURVE, INK, MUTED, GRID = "#1f6fb2", "#1b1f24", "#59626d", "#eceff2"
#: Colours and shapes of recipes; the circle in blue is the alpha curve's.
MARKS = ("#c2410c", "#6b4fbb", "#0f766e", "#b8285f", "#8a6d00", "#3b4cc0", "#5b7f00", "#7a4a2b")
SHAPES = ("D", "^", "s", "P", "v", "X", "<", "p", ">", "h")
# Inches: as wide as a telephone.
_WIDTH = 4.8
_STYLE: Any = {
    "figure.dpi": 180,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": GRID,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}
# A legend above its panel.
_ABOVE: Any = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 3}


@rc_context(_STYLE)
def merge_figure(record: Record) -> Figure:
    """The accuracies of the models, if there is a verdict, and how far each layer goes."""
    heights = [2.3]
    if record.verdict:
        rows = len(record.verdict.sources) + 1
        heights = [0.9 + 0.6 * rows, *heights]
    figure = Figure((_WIDTH, sum(heights)))
    panels = figure.subplots(len(heights), squeeze=False, height_ratios=heights).ravel()
    if record.verdict:
        _draw_verdict(panels[0], record.verdict)
    _draw_layers(panels[-1], record.plan.layers)
    return figure


def _draw_verdict(axes: Axes, verdict: Verdict) -> None:
    """A row for each source, with every model's accuracy and its interval."""
    rows = [verdict.target, verdict.corrupted, *verdict.ood]
    colours = (MUTED, CURVE, *MARKS)
    for number, model in enumerate(verdict.target.models):
        values, below, above = [], [], []
        for row in rows:
            estimate = row.models[model]
            low, high = estimate.interval
            value = estimate.value
            values.append(100 * value)
            below.append(100 * (value - low))
            above.append(100 * (high - value))
        shift = 0.2 * number - 0.2
        axes.errorbar(
            values,
            [at + shift for at in range(len(rows))],
            xerr=[below, above],
            fmt="o",
            color=colours[number % len(colours)],
            label=model,
        )
    names = [row.name for row in rows]
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("recall at 1, %" if verdict.target.recall else "accuracy, %")
    axes.legend(**_ABOVE)


def _draw_layers(axes: Axes, layers: Mapping[str, LayerPlan]) -> None:
    """The alpha of every layer in network order, and the range of learned coefficients."""
    towers: dict[str, list[int]] = {}
    for at, name in enumerate(layers):
        if "." in name:  # a scalar belongs to no tower
            towers.setdefault(name.partition(".")[0], []).append(at)
    entries = list(layers.values())
    colours = iter((CURVE, *MARKS))
    for tower, places in towers.items():
        colour = next(colours)
        chosen = [entries[at] for at in places]
        alphas = [layer.alpha for layer in chosen]
        axes.plot(places, alphas, "o-", ms=3, color=colour, label=tower)
        ends = [layer.alpha_range or (layer.alpha, layer.alpha) for layer in chosen]
        axes.fill_between(
            places,
            [low for low, _ in ends],
            [high for _, high in ends],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    axes.set_xlabel("layer, in network order (alpha 0: zero-shot, 1: fine-tuned)")
    axes.set_ylabel("alpha")
    axes.legend(**_ABOVE)


@rc_context(_STYLE)
def sweep_figure(record: Json) -> Figure:
    """The alpha curve, and every recipe or checkpoint as a point; thin lines are intervals."""
    points = recipes_and_points(record)
    figure = Figure((_WIDTH, 4.2 + 0.25 * len(points)))
    axes = figure.add_subplot()
    curve = record["curve"]
    across = [100 * row["id"] for row in curve]
    up = [100 * row["ood"] for row in curve]
    axes.plot(across, up, "o-", ms=5, color=CURVE, mfc="white", label="alpha curve (WiSE-FT)")
    for row in curve:
        _draw_intervals(axes, row, CURVE)
        if row["alpha"] == 0:
            _draw_point(axes, row, "o", CURVE, label="zero-shot", mfc="white", ms=10)
        elif row["alpha"] == 1:
            _draw_point(axes, row, "o", CURVE, label="fine-tuned", ms=10)
    for number, row in enumerate(points):
        colour = MARKS[number % len(MARKS)]
        shape = SHAPES[number % len(SHAPES)]
        name = row["name"].replace("$", r"\$").lstrip("_")  # neither a formula nor hidden
        _draw_intervals(axes, row, colour)
        _draw_point(axes, row, shape, colour, label=name, mec="white", ms=9)
    for kind, name in (("id", axes.set_xlabel), ("ood", axes.set_ylabel)):
        mean = "mean " if len(record[kind]) > 1 else ""
        name(f"{mean}{kind.upper()} accuracy, %")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _draw_point(axes: Axes, row: Json, shape: str, colour: str, **style: Any) -> None:
    x = 100 * row["id"]
    y = 100 * row["ood"]
    axes.plot(x, y, shape, color=colour, **style)


def _draw_intervals(axes: Axes, row: Json, colour: str) -> None:
    left, right = row["id_interval"]
    low, high = row["ood_interval"]
    style: Any = {"color": colour, "linewidth": 1, "alpha": 0.4}
    x = 100 * row["id"]
    y = 100 * row["ood"]
    axes.hlines(y, 100 * left, 100 * right, **style)
    axes.vlines(x, 100 * low, 100 * high, **style)


@rc_context(_STYLE)
def png(figure: Figure) -> bytes:
    """A figure as PNG; equal ones give equal bytes with the same matplotlib and fonts."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # a name in letters that the font lacks has boxes, which the user cannot help
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
