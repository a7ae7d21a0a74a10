"""Pictures of a merge and of a sweep, narrow enough for a phone.

As in the WiSE-FT paper, accuracy under shift is drawn against accuracy on the target.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipmerge.planning.plan import LayerPlan
from clipmerge.planning.record import Estimate, Question, Record, Verdict
from clipmerge.report.wording import recipes_and_points
from clipmerge.types import Json

_SHAPES = "hD^sPvX<p>"
# Width of a phone, in inches.
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
_ABOVE: Any = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 2, "fontsize": 8}


@rc_context(_STYLE)
def merge_figure(record: Record) -> Figure:
    """Draw a merge: its accuracies beside those of plain interpolation, if there are `ood` images;
    the losses of learning, if it learned; and the alpha of every layer.
    """
    draw: list[tuple[float, Callable[[Axes], None]]] = []
    if verdict := record.verdict:
        _, *others = verdict.answers
        for question in others:
            draw.append((3.6, partial(_draw_verdict, verdict=verdict, question=question)))
    if trace := record.measured.trace:
        draw.append((2.0, partial(_draw_learning, losses=trace)))
    layers = record.plan.layers
    draw.append((0.7 + 0.13 * len(layers), partial(_draw_layers, layers=layers)))
    heights = [height for height, _ in draw]
    figure = Figure((_WIDTH, sum(heights)))
    panels = figure.subplots(len(heights), squeeze=False, height_ratios=heights).ravel()
    for axes, (_, panel) in zip(panels, draw, strict=True):
        panel(axes)
    return figure


def _draw_verdict(axes: Axes, verdict: Verdict, question: Question) -> None:
    """Draw the merge beside plain interpolation, with marks at its ends and its best alpha."""
    target, answer = (verdict.answers[each] for each in ("target", question))
    best = verdict.alphas.index(verdict.best_alpha)
    marked = {0: "zero-shot", len(verdict.alphas) - 1: "alpha 1"}
    curve = (target.curve, answer.curve)
    points = {"this merge": (target.merged, answer.merged)}
    _draw_tradeoff(axes, question, curve, marked | {best: "best plain alpha"}, points)
    axes.legend(**_ABOVE)


def _draw_learning(axes: Axes, losses: Mapping[str, Sequence[float]]) -> None:
    """Draw each loss of learning, averaged over a twentieth of the steps."""
    for name, values in losses.items():
        size = max(1, len(values) // 20)
        means = np.convolve(values, np.full(size, 1 / size), "valid")
        axes.plot(np.arange(size, size + len(means)), means, label=name.replace("_", " "))
    axes.set_xlabel("step of learning")
    axes.set_ylabel("loss, nats")
    axes.legend(**_ABOVE)


def _draw_layers(axes: Axes, layers: Mapping[str, LayerPlan]) -> None:
    """Draw a row per layer: a point at its alpha, and a bar from 0 to alpha or, if coefficients
    were learned, over their range.
    """
    towers = list(dict.fromkeys(name.partition(".")[0] for name in layers))
    for place, (name, layer) in enumerate(layers.items()):
        colour = f"C{towers.index(name.partition('.')[0])}"
        low, high = layer.alpha_range or (0, layer.alpha)
        axes.hlines(place, low, high, colors=colour, linewidth=4, alpha=0.4)
        axes.plot(layer.alpha, place, "o", c=colour, ms=3)
    axes.set_yticks(range(len(layers)), list(layers), fontsize=6, parse_math=False)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlabel("alpha of each layer (0: zero-shot, 1: fine-tuned)")


@rc_context(_STYLE)
def sweep_figure(record: Json) -> Figure:
    """Draw a sweep: the alpha curve, and every recipe and checkpoint with intervals, in a panel for
    shifts and one for other tasks.
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
    """Draw accuracy under shift or on other tasks against accuracy on the target.

    Args:
        axes: The panel.
        question: ``shift`` or ``task``.
        curve: Accuracies of plain interpolation on the target and elsewhere, (2, alphas).
        marked: Labels of some alphas, by position.
        points: Accuracies of other models on the target and elsewhere, by name.
    """
    across, up = 100 * np.array(curve)
    axes.plot(across, up, "C0o-", ms=3, label="plain interpolation")
    for number, (at, label) in enumerate(marked.items()):
        axes.plot(across[at], up[at], "os^"[number], c="C0", label=label)
    for number, (name, place) in enumerate(points.items(), 1):
        x, y = (100 * np.array([each.value, *each.interval]) for each in place)
        lengths: Any = {"xerr": abs(x[1:, None] - x[0]), "yerr": abs(y[1:, None] - y[0])}
        style: Any = {"fmt": _SHAPES[number % len(_SHAPES)], "c": f"C{number}", "ms": 8}
        # unescaped, $ would begin a formula, and a leading _ would hide the label
        label = name.replace("$", r"\$").lstrip("_")
        axes.errorbar(x[0], y[0], **lengths, **style, elinewidth=0.7, label=label)
    axes.set_xlabel("accuracy on the target, %")
    axes.set_ylabel("accuracy under shift, %" if question == "shift" else "on other tasks, %")


@rc_context(_STYLE)
def png(figure: Figure) -> bytes:
    """Save a figure as PNG. With the same matplotlib and fonts, equal figures give equal bytes."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # the font may lack letters of a name, about which users can do nothing
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
