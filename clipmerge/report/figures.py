"""The pictures of a merge and of a sweep, narrow enough to be read on a telephone.

A sweep's is that of the WiSE-FT paper: mean OOD accuracy against ID accuracy.
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
from clipmerge.planning.record import Record, Verdict
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
    """The accuracy of every model if there is a verdict, the losses of learning if there are any,
    and the alpha of every layer.
    """
    draw: list[tuple[float, Callable[[Axes], None]]] = []
    if verdict := record.verdict:
        height = 1.5 + 0.6 * len(verdict.sources)
        draw.append((height, partial(_draw_verdict, verdict=verdict)))
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


def _draw_learning(axes: Axes, losses: Mapping[str, Sequence[float]]) -> None:
    """Draw each loss of learning, as the mean of windows of a twentieth of the steps."""
    for name, values in losses.items():
        size = max(1, len(values) // 20)
        means = np.convolve(values, np.full(size, 1 / size), "valid")
        axes.plot(np.arange(size, size + len(means)), means, label=name.replace("_", " "))
    axes.set_xlabel("step of learning")
    axes.set_ylabel("loss, nats")
    axes.legend(**_ABOVE)


def _draw_layers(axes: Axes, layers: Mapping[str, LayerPlan]) -> None:
    """Draw a row for each layer: its alpha, and a bar from 0 or over the learned coefficients."""
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
    """The alpha curve, and every recipe or checkpoint as a point with its intervals."""
    points = recipes_and_points(record)
    figure = Figure((_WIDTH, 4.2 + 0.25 * len(points)))
    axes = figure.add_subplot()
    curve = record["curve"]
    across = [100 * row["id"] for row in curve]
    up = [100 * row["ood"] for row in curve]
    axes.plot(across, up, "C0", label="alpha curve (WiSE-FT)")
    styles: dict[float, Any] = {
        0: {"mfc": "white", "label": "zero-shot"},
        1: {"label": "fine-tuned"},
    }
    for row in curve:
        _draw_point(axes, row, "o", c="C0", **styles.get(row["alpha"], {"ms": 3}))
    for number, row in enumerate(points, 1):
        name = row["name"].replace("$", r"\$").lstrip("_")  # neither a formula nor hidden
        _draw_point(axes, row, _SHAPES[number % len(_SHAPES)], c=f"C{number}", ms=8, label=name)
    for kind, set_label in (("id", axes.set_xlabel), ("ood", axes.set_ylabel)):
        mean = "mean " if len(record[kind]) > 1 else ""
        set_label(f"{mean}{kind.upper()} accuracy, %")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _draw_point(axes: Axes, row: Json, shape: str, **style: Any) -> None:
    """Draw a point with its intervals as thin lines."""
    x, y = (np.array([row[kind], *row[f"{kind}_interval"]]) * 100 for kind in ("id", "ood"))
    lengths = {"xerr": abs(x[1:, None] - x[0]), "yerr": abs(y[1:, None] - y[0])}
    axes.errorbar(x[0], y[0], **lengths, fmt=shape, elinewidth=0.7, **style)


@rc_context(_STYLE)
def png(figure: Figure) -> bytes:
    """A figure as PNG; equal ones give equal bytes with the same matplotlib and fonts."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # the user cannot help that the font lacks the letters of a name
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
