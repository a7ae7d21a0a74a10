"""The pictures of a merge and of a sweep, narrow enough to be read on a telephone.

A sweep's is that of the WiSE-FT paper: accuracy under shift against accuracy on the target.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipmerge.planning.plan import LayerPlan
from clipmerge.planning.record import QUESTIONS, Estimate, Question, Record, Verdict
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
    """The alpha of every layer, below the accuracy of every model if there is a verdict."""
    heights = [2.3]
    if verdict := record.verdict:
        rows = 1.5 + 0.6 * len(verdict.sources)
        heights = [rows, *(3.6 for _ in verdict.means), *heights]
    figure = Figure((_WIDTH, sum(heights)))
    panels = figure.subplots(len(heights), squeeze=False, height_ratios=heights).ravel()
    if verdict:
        _draw_verdict(panels[0], verdict)
        for axes, question in zip(panels[1:], verdict.means, strict=False):
            _draw_plain(axes, verdict, question)
    _draw_layers(panels[-1], record.plan.layers)
    return figure


def _draw_plain(axes: Axes, verdict: Verdict, question: Question) -> None:
    """Draw the merge beside the curve of plain interpolation and its best alpha."""
    target, mean = verdict.target, verdict.means[question]
    _draw_curve(axes, target.curve, mean.curve)
    best = verdict.alphas.index(verdict.best_alpha)
    styles = {best: ("C1D", f"best alpha {verdict.best_alpha:g}")}
    styles = {0: ("C0o", "zero-shot"), len(target.curve) - 1: ("C0s", "alpha 1")} | styles
    for at, (shape, label) in styles.items():
        axes.plot(100 * target.curve[at], 100 * mean.curve[at], shape, label=label)
    _draw_point(
        axes, target.models["merged"], mean.models["merged"], "*", c="C2", ms=11, label="this merge"
    )
    _label_tradeoff(axes, question)
    axes.legend(**_ABOVE)


def _draw_verdict(axes: Axes, verdict: Verdict) -> None:
    """Draw a row for each source: the accuracy of every model, with its interval."""
    rows = [verdict.target, verdict.corrupted, *verdict.ood]
    places = np.arange(len(rows))
    for number, model in enumerate(verdict.target.models):
        values = np.array([100 * row.models[model].value for row in rows])
        ends = np.array([[100 * end for end in row.models[model].interval] for row in rows]).T
        offset = 0.2 * (number - 1)
        axes.errorbar(values, places + offset, xerr=abs(ends - values), fmt="o", label=model)
    axes.set_yticks(places, [row.name for row in rows], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("recall at 1, %" if verdict.target.recall else "accuracy, %")
    axes.legend(**_ABOVE)


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
    points = recipes_and_points(record)
    asked = [question for question in QUESTIONS if record[question]]
    figure = Figure((_WIDTH, 3.6 * len(asked) + 0.6 + 0.25 * len(points)))
    for question, axes in zip(
        asked, figure.subplots(len(asked), squeeze=False).ravel(), strict=True
    ):
        _draw_sweep(axes, record, question)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _draw_sweep(axes: Axes, record: Json, question: Question) -> None:
    """Draw accuracy on the sources of one question against that on the target."""

    def draw(row: Json, shape: str, **style: Any) -> None:
        answer = row[question]
        across = Estimate(value=row["id"], interval=row["id_interval"])
        up = Estimate(value=answer["accuracy"], interval=answer["interval"])
        _draw_point(axes, across, up, shape, **style)

    curve = record["curve"]
    _draw_curve(axes, [row["id"] for row in curve], [row[question]["accuracy"] for row in curve])
    styles: dict[float, Any] = {
        0: {"mfc": "white", "label": "zero-shot"},
        1: {"label": "fine-tuned"},
    }
    for row in curve:
        draw(row, "o", c="C0", **styles.get(row["alpha"], {"ms": 3}))
    for number, row in enumerate(recipes_and_points(record), 1):
        name = row["name"].replace("$", r"\$").lstrip("_")  # neither a formula nor hidden
        draw(row, _SHAPES[number % len(_SHAPES)], c=f"C{number}", ms=8, label=name)
    _label_tradeoff(axes, question, means=len(record["id"]) > 1)


def _draw_curve(axes: Axes, across: Sequence[float], up: Sequence[float]) -> None:
    axes.plot(100 * np.array(across), 100 * np.array(up), "C0", label="plain interpolation")


def _label_tradeoff(axes: Axes, question: Question, *, means: bool = False) -> None:
    axes.set_xlabel(f"{'mean ' if means else ''}accuracy on the target, %")
    axes.set_ylabel(f"accuracy {QUESTIONS[question]}, %")


def _draw_point(axes: Axes, across: Estimate, up: Estimate, shape: str, **style: Any) -> None:
    """Draw a point with its intervals as thin lines."""
    x, y = (100 * np.array([[each.value], [each.value]]) for each in (across, up))
    ends = (100 * np.array(each.interval)[:, None] for each in (across, up))
    lengths = [abs(end - value) for end, value in zip(ends, (x, y), strict=True)]
    axes.errorbar(x[0], y[0], xerr=lengths[0], yerr=lengths[1], fmt=shape, elinewidth=0.7, **style)


@rc_context(_STYLE)
def png(figure: Figure) -> bytes:
    """A figure as PNG; equal ones give equal bytes with the same matplotlib and fonts."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # the user cannot help that the font lacks the letters of a name
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
