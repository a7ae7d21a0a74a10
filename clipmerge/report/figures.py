"""The picture of a merge and that of a sweep, drawn by matplotlib in one style.

They are narrow enough to be read on a telephone. A sweep's is that of the WiSE-FT paper: mean OOD
accuracy against ID accuracy.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clipmerge.output.record import Record
from clipmerge.planning.plan import LayerPlan
from clipmerge.planning.verdict import Verdict
from clipmerge.types import Json

CURVE, INK, MUTED, GRID = "#1f6fb2", "#1b1f24", "#59626d", "#eceff2"
#: Colours and shapes of recipes; the circle in blue is the alpha curve's.
MARKS = ("#c2410c", "#6b4fbb", "#0f766e", "#b8285f", "#8a6d00", "#3b4cc0", "#5b7f00", "#7a4a2b")
SHAPES = ("D", "^", "s", "P", "v", "X", "<", "p", ">", "h")
# Inches and dots per inch: 4.8 inches are as wide as a telephone.
_WIDTH, _DOTS = 4.8, 180


def merge_figure(record: Record) -> Figure:
    """The accuracies of the models, if there is a verdict, and how far each layer goes."""
    heights = [2.3]
    if record.verdict:
        heights = [0.9 + 0.6 * (len(record.verdict.sources) + 1), *heights]
    figure = _new_figure(sum(heights))
    panels = list(figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0])
    if record.verdict:
        _draw_verdict(panels.pop(0), record.verdict)
    _draw_layers(panels.pop(0), record.plan.layers)
    return figure


def _draw_verdict(axes: Axes, verdict: Verdict) -> None:
    """A row for each source, with every model's accuracy and its interval."""
    rows = {"target": verdict.target, "corrupted": verdict.corrupted}
    for source in verdict.ood:
        rows[source.name] = source
    colours = (MUTED, CURVE, *MARKS)
    for number, model in enumerate(verdict.target.models):
        height = 0.2 * number - 0.2
        values, below, above = [], [], []
        for row in rows.values():
            low, high = row.models[model].interval
            value = row.models[model].value
            values.append(100 * value)
            below.append(100 * (value - low))
            above.append(100 * (high - value))
        axes.errorbar(
            values,
            [at + height for at in range(len(rows))],
            xerr=[below, above],
            fmt="o",
            color=colours[number % len(colours)],
            label=model,
        )
    axes.set_yticks(range(len(rows)), list(rows), parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("recall at 1, %" if verdict.target.captions else "accuracy, %")
    _legend_above(axes)


def _draw_layers(axes: Axes, layers: Mapping[str, LayerPlan]) -> None:
    """The alpha of every layer in network order, and the range of learned coefficients."""
    towers: dict[str, list[int]] = {}
    for at, name in enumerate(layers):
        if "." in name:  # a scalar belongs to no tower
            towers.setdefault(name.partition(".")[0], []).append(at)
    entries = list(layers.values())
    for (tower, places), colour in zip(towers.items(), (CURVE, *MARKS), strict=False):
        alphas = [entries[at].alpha for at in places]
        ranges = [entries[at].alpha_range or (entries[at].alpha,) * 2 for at in places]
        low = [ends[0] for ends in ranges]
        high = [ends[1] for ends in ranges]
        axes.plot(places, alphas, "o-", ms=3, color=colour, label=tower)
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("layer, in network order (alpha 0: zero-shot, 1: fine-tuned)")
    axes.set_ylabel("alpha")
    _legend_above(axes)


def sweep_figure(record: Json) -> Figure:
    """The alpha curve, and every recipe or checkpoint as a point; thin lines are intervals."""
    from clipmerge.report.numbers import points_of

    figure = _new_figure(4.2 + 0.25 * len(points_of(record)))
    axes = figure.add_subplot()
    _style(axes)
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
    for number, row in enumerate(points_of(record)):
        colour = MARKS[number % len(MARKS)]
        shape = SHAPES[number % len(SHAPES)]
        name = row["name"].replace("$", r"\$").lstrip("_")  # neither a formula nor hidden
        _draw_intervals(axes, row, colour)
        _draw_point(axes, row, shape, colour, label=name, mec="white", ms=9)
    axes.set_xlabel(f"{'mean ' if len(record['id']) > 1 else ''}ID accuracy, %")
    axes.set_ylabel(f"{'mean ' if len(record['ood']) > 1 else ''}OOD accuracy, %")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, labelcolor=INK, frameon=False)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as PNG; equal ones give equal bytes with the same matplotlib and fonts."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # a name in letters that the font lacks has boxes, which the user cannot help
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _new_figure(height: float) -> Figure:
    figure = Figure((_WIDTH, height), dpi=_DOTS, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Axes) -> None:
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED)


def _legend_above(axes: Axes) -> None:
    _style(axes)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        frameon=False,
        labelcolor=INK,
        ncols=3,
        fontsize=9,
    )


def _draw_point(axes: Axes, row: Json, shape: str, colour: str, **style: Any) -> None:
    axes.plot(100 * row["id"], 100 * row["ood"], shape, color=colour, **style)


def _draw_intervals(axes: Axes, row: Json, colour: str) -> None:
    x, y = 100 * row["id"], 100 * row["ood"]
    left, right = row["id_interval"]
    low, high = row["ood_interval"]
    axes.hlines(y, 100 * left, 100 * right, color=colour, linewidth=1, alpha=0.4)
    axes.vlines(x, 100 * low, 100 * high, color=colour, linewidth=1, alpha=0.4)
