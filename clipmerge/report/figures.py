"""The pictures of a merge and of a sweep, narrow enough to be read on a telephone.

A sweep's is that of the WiSE-FT paper: accuracy under shift against accuracy on the target.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipmerge.planning.plan import LayerPlan
from clipmerge.planning.record import Estimate, Record
from clipmerge.report.wording import recipes_and_points
from clipmerge.types import Json

_SHAPES = "hD^sPvX<p>"
# Inches: as wide as a telephone.
_WIDTH = 4.8
_STYLE: Any = {
    "figure.dpi": 180,
    "figure.constrained_layout.use": True,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "#eceff2",
    "legend.frameon": False,
}
# A legend above its panel.
_ABOVE: Any = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 3}


@rc_context(_STYLE)
def merge_figure(record: Record) -> Figure:
    """The alpha of every layer, and above it the merge beside plain interpolation, if judged."""
    verdict = record.verdict
    answers = dict(verdict.answers) if verdict else {}
    target = answers.pop("target", None)
    heights = [*(3.6 for _ in answers), 2.3]
    figure = Figure((_WIDTH, sum(heights)))
    panels = figure.subplots(len(heights), squeeze=False, height_ratios=heights).ravel()
    if verdict and target:
        marked = {
            0: "zero-shot",
            -1: "alpha 1",
            verdict.alphas.index(verdict.best_alpha): "best plain alpha",
        }
        for axes, (question, answer) in zip(panels, answers.items(), strict=False):
            points = {"this merge": (target.merged, answer.merged)}
            _draw_tradeoff(axes, question, (target.curve, answer.curve), marked, points)
            axes.legend(**_ABOVE)
    _draw_layers(panels[-1], record.plan.layers)
    return figure


def _draw_layers(axes: Axes, layers: Mapping[str, LayerPlan]) -> None:
    """Draw the alpha of every layer, and the range of learned coefficients as a line."""
    towers: dict[str, list[tuple[int, LayerPlan]]] = {}
    for place, (name, layer) in enumerate(layers.items()):
        tower, dot, _ = name.partition(".")
        if dot:  # scalars belong to no tower
            towers.setdefault(tower, []).append((place, layer))
    for number, (tower, members) in enumerate(towers.items()):
        places = [place for place, _ in members]
        colour = f"C{number}"
        axes.plot(places, [layer.alpha for _, layer in members], "o-", c=colour, ms=3, label=tower)
        for place, layer in members:
            if layer.alpha_range:
                axes.vlines(place, *layer.alpha_range, colors=colour, alpha=0.3)
    axes.set_xlabel("layer, in network order (alpha 0: zero-shot, 1: fine-tuned)")
    axes.set_ylabel("alpha")
    axes.legend(**_ABOVE)


@rc_context(_STYLE)
def sweep_figure(record: Json) -> Figure:
    """The alpha curve, and every recipe or checkpoint as a point with its intervals: a panel for
    shifts, and one for other tasks.
    """
    others = recipes_and_points(record)
    asked = [question for question in ("shift", "task") if record[question]]
    figure = Figure((_WIDTH, 3.6 * len(asked) + 0.6 + 0.25 * len(others)))
    panels = figure.subplots(len(asked), squeeze=False).ravel()
    ends = {0: "zero-shot", 1: "fine-tuned"}
    marked = {
        at: ends[row["alpha"]] for at, row in enumerate(record["curve"]) if row["alpha"] in ends
    }
    for question, axes in zip(asked, panels, strict=True):
        both = ("target", question)
        curve = [[row["mean"][each]["value"] for row in record["curve"]] for each in both]
        points = {
            row["name"]: tuple(Estimate(**row["mean"][each]) for each in both) for row in others
        }
        _draw_tradeoff(axes, question, curve, marked, points)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _draw_tradeoff(
    axes: Axes,
    question: str,
    curve: Any,
    marked: Mapping[int, str],
    points: Mapping[str, tuple[Estimate, ...]],
) -> None:
    """Draw the accuracy that answers a question against that on the target: a curve, (2, alphas),
    of which some alphas are marked, and points with their intervals.
    """
    across, up = 100 * np.array(curve)
    axes.plot(across, up, "C0o-", ms=3, label="plain interpolation")
    for number, (at, label) in enumerate(marked.items()):
        axes.plot(across[at], up[at], "os^"[number], c="C0", label=label)
    for number, (name, place) in enumerate(points.items(), 1):
        x, y = (100 * np.array([each.value, *each.interval]) for each in place)
        lengths: Any = {"xerr": abs(x[1:, None] - x[0]), "yerr": abs(y[1:, None] - y[0])}
        style: Any = {"fmt": _SHAPES[number % len(_SHAPES)], "c": f"C{number}", "ms": 8}
        label = name.replace("$", r"\$").lstrip("_")  # neither a formula nor hidden
        axes.errorbar(x[0], y[0], **lengths, **style, elinewidth=0.7, label=label)
    axes.set_xlabel("accuracy on the target, %")
    axes.set_ylabel("accuracy under shift, %" if question == "shift" else "on other tasks, %")


@rc_context(_STYLE)
def png(figure: Figure) -> bytes:
    """A figure as PNG; equal ones give equal bytes with the same matplotlib and fonts."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # the user cannot help that the font lacks the letters of a name
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
