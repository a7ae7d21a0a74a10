"""Pictures of the results page: ID accuracy across, mean OOD accuracy up, the curve and the recipes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.shifts.standing import Resampled

#: One recipe with other values of its one knob, in the order of that knob: drawn as a line.
KNOB = ("auto", "auto-1", "auto-3", "auto-10")
_CURVE, _AUTO = "#1f6fb2", "#c2410c"
_COLOURS = ("#6b4fbb", "#0f766e", "#b8285f", "#8a6d00", "#3b4cc0", "#5b7f00", "#7a4a2b", "#59626d")
_MARKERS = ("D", "^", "s", "P", "v", "X", "<", "p", ">", "h", "*", "d")


def regime_png(title: str, pairs: Sequence[Resampled], recipes: Sequence[str]) -> bytes:
    """Draw one regime, averaged over its pairs.

    Args:
        title: Above the picture.
        pairs: The regime's pairs.
        recipes: What to draw beside the curve; each averaged over the pairs that have it.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(8.0, 5.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(f"{title}: mean of {len(pairs)} pair{'s' * (len(pairs) > 1)}")
    axes.set_xlabel("ID accuracy, %")
    axes.set_ylabel("mean OOD accuracy, %")
    axes.grid(color="#eceff2")
    axes.spines[["top", "right"]].set_visible(False)
    across, up = (100 * np.mean([side[0, pair.curve] for pair, side in _sides(pairs, axis)], axis=0) for axis in (0, 1))
    axes.plot(across, up, "-o", color=_CURVE, markersize=4, markerfacecolor="white", label="WiSE-FT by alpha")
    for place, text in ((0, "zero-shot"), (-1, "fine-tuned")):
        axes.annotate(text, (across[place], up[place]), xytext=(4, 6), textcoords="offset points", fontsize=9)
    having = {name: [pair for pair in pairs if pair.has(name)] for name in recipes}
    _knob(axes, {name: having[name] for name in KNOB if having.get(name)})
    for number, (name, of) in enumerate((name, of) for name, of in having.items() if of and name not in KNOB):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        told = name if len(of) == len(pairs) else f"{name} ({len(of)} of {len(pairs)})"
        axes.plot(*_means(of, [name]), color=colour, marker=marker, linestyle="none", markersize=7, label=told)
    axes.legend(fontsize=8, loc="best")
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _knob(axes: Axes, having: Mapping[str, Sequence[Resampled]]) -> None:
    """Draw what one knob does as a line, over the pairs that have all of its points; and the default on all pairs."""
    if not having:
        return
    every = max(having.values(), key=len)
    few = min(having.values(), key=len)
    if len(having) > 1:
        told = " \N{RIGHTWARDS ARROW} ".join(having)
        axes.plot(
            *_means(few, list(having)), "-o", color=_AUTO, markersize=4, label=f"{told} ({len(few)} of {len(every)})"
        )
    axes.plot(*_means(every, ["auto"]), "*", color=_AUTO, markersize=12, linestyle="none", label="auto")


def _sides(pairs: Sequence[Resampled], axis: int) -> list[tuple[Resampled, np.ndarray]]:
    return [(pair, (pair.id, pair.ood)[axis]) for pair in pairs]


def _means(pairs: Sequence[Resampled], names: Sequence[str]) -> tuple[list[float], list[float]]:
    """Mean ID and OOD accuracy of recipes over the pairs, in per cent."""
    id_, ood = (
        [100 * float(np.mean([side[0, pair.point(name)] for pair, side in _sides(pairs, axis)])) for name in names]
        for axis in (0, 1)
    )
    return id_, ood
