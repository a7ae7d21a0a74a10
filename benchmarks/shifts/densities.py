"""Gain against density for sparse masks over sharp, flat and random layers: does it matter which
layers are thinned?"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.shifts.standing import Estimate, Floats, Resampled, over_pairs

#: Group of `contestants.yaml`; its contestants are called "SET DENSITY", random sets "random-N
#: DENSITY".
GROUP = "densities"
_RANDOM = "random"
_COLOURS = {"sharpest": "#c2410c", "flattest": "#1f6fb2", _RANDOM: "#59626d"}
_MARKERS = {"sharpest": "o", "flattest": "s", _RANDOM: "^"}


def curves(pair: Resampled) -> dict[str, dict[float, Estimate]]:
    """Gain at equal ID accuracy by set of layers and density, for those with which the pair was
    merged.

    Random sets of one density are averaged; their interval resamples the sets as well as the
    drawings.
    """
    found: dict[str, dict[float, list[Floats]]] = {}
    for row in pair.record["recipes"]:
        name, _, density = row["name"].partition(" ")
        kind = _RANDOM if name.startswith(f"{_RANDOM}-") else name
        if kind in _COLOURS and density:
            found.setdefault(kind, {}).setdefault(float(density), []).append(pair.gain(row["name"]))
    return {
        kind: {
            density: over_pairs(found[kind][density])
            for density in sorted(found[kind], reverse=True)
        }
        for kind in _COLOURS
        if kind in found
    }


def rows(pair: Resampled) -> list[list[str]]:
    """Rows of a table: density, then the gain for every set of layers."""
    found = curves(pair)
    densities = sorted({density for each in found.values() for density in each}, reverse=True)
    return [
        [f"{density:g}", *(_told(found[kind].get(density)) for kind in found)]
        for density in densities
    ]


def _told(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return estimate.told if estimate.pairs <= 1 else f"{estimate.told} ({estimate.pairs} sets)"


def densities_png(pairs: Sequence[Resampled]) -> bytes:
    """Draw the curves, one panel per pair."""
    figure = Figure(figsize=(4.2 * len(pairs) + 0.6, 3.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axes, pair in zip(panels, pairs, strict=True):
        axes.axhline(0, color="#59626d", linewidth=0.8)
        for shift, (kind, each) in enumerate(curves(pair).items()):
            known = {
                density: estimate
                for density, estimate in each.items()
                if estimate.value is not None
            }
            at = np.array(list(known)) + 0.012 * (shift - 1)
            values = np.array([100 * float(estimate.value or 0) for estimate in known.values()])
            ends = (
                np.array([estimate.interval or (np.nan, np.nan) for estimate in known.values()]).T
                * 100
            )
            axes.errorbar(
                at,
                values,
                yerr=np.abs(ends - values),
                color=_COLOURS[kind],
                marker=_MARKERS[kind],
                markersize=6,
                capsize=2,
                linewidth=1.2,
                label=f"{kind} layers",
            )
        axes.set_title(f"{pair.name} (tuning pair, 2 million parameters)", fontsize=10)
        axes.set_xlabel("density: share of the layers' change that is kept")
        axes.set_xticks([0.1, 0.3, 0.5, 0.7])
        axes.grid(axis="y", color="#eceff2")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("gain at equal ID accuracy, OOD points")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        fontsize=8,
        loc="outside lower center",
        ncols=len(_COLOURS),
    )
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
