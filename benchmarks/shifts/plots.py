"""Pictures of the results page, drawn as a sweep: mean OOD accuracy against ID accuracy, the curve
and the recipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.shifts.experiment import About
from benchmarks.shifts.standing import Resampled, over_pairs
from clipmerge.report.figures import figure_bytes, sweep_figure


def regime_png(
    about: About, regime: str, pairs: Sequence[Resampled], recipes: Sequence[str]
) -> bytes:
    """Draw one regime, averaged over its pairs, with 95% intervals in both directions."""
    record = pairs[0].record
    shown = {
        "id": record["id"],
        "ood": record["ood"],
        "curve": [
            {"alpha": row["alpha"], **_row(pairs, [place] * len(pairs))}
            for place, row in enumerate(record["curve"])
        ],
        "recipes": [
            _recipe(name, pairs) for name in recipes if any(pair.has(name) for pair in pairs)
        ],
    }
    count = f"{len(pairs)} held-out pair{'s' * (len(pairs) > 1)}"
    title = f"{about.title}, {regime} fine-tuning\n{about.models}, mean of {count}, 95% intervals"
    return figure_bytes(sweep_figure(shown, title=title), "png")


def _recipe(name: str, pairs: Sequence[Resampled]) -> dict[str, Any]:
    having = [pair for pair in pairs if pair.has(name)]
    told = name if len(having) == len(pairs) else f"{name} ({len(having)} of {len(pairs)})"
    return {"name": told, "alpha": None, **_row(having, [pair.point(name) for pair in having])}


def _row(pairs: Sequence[Resampled], places: Sequence[int]) -> dict[str, Any]:
    """Mean accuracies of a point over pairs, and their intervals."""
    row: dict[str, Any] = {}
    for axis in ("id", "ood"):
        found = over_pairs(
            [getattr(pair, axis)[:, place] for pair, place in zip(pairs, places, strict=True)]
        )
        row |= {axis: found.value, f"{axis}_interval": found.interval}
    return row
