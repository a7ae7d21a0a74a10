"""Compare recipes with the WiSE-FT curve, pair by pair and over pairs, from the JSON files alone.

Intervals are 95% percentile intervals over resamples. Each resample draws the things in the
pictures (all pictures of one thing together, in every source and for every pair) and the pairs of a
group. The curve is resampled with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.shifts.evaluation import unpacked
from benchmarks.shifts.experiment import pair_name
from clipmerge.evaluation.tradeoff import curve_height
from clipmerge.stats import percentile_interval

Floats = NDArray[np.float64]
RESAMPLES = 1000


@dataclass(frozen=True)
class Resampled:
    """One pair's points; row 0 as measured, the other rows resampled.

    Attributes:
        record: The pair's JSON.
        id: ID accuracy, shape (1 + resamples, points); the curve's points, then the recipes.
        ood: Mean OOD accuracy, same shape.
    """

    record: dict[str, Any]
    id: Floats
    ood: Floats

    @property
    def name(self) -> str:
        """Name of its file."""
        return pair_name(self.record["regime"], self.record.get("target", ""), self.record["seed"])

    @property
    def curve(self) -> slice:
        """The points that make the curve."""
        return slice(0, len(self.record["curve"]))

    def point(self, recipe: str) -> int:
        """Index of a recipe among the points; -1 if the pair was not merged with it."""
        names = [row["name"] for row in self.record["recipes"]]
        return len(self.record["curve"]) + names.index(recipe) if recipe in names else -1

    def has(self, recipe: str) -> bool:
        """Whether the pair was merged with this recipe."""
        return self.point(recipe) >= 0

    def gain(self, recipe: str) -> Floats:
        """OOD accuracy above the curve's at equal ID accuracy, shape (1 + resamples,); NaN where
        the curve has none."""
        at = [self.point(recipe)]
        found: Floats = self.ood[:, at] - curve_height(
            self.id[:, self.curve], self.ood[:, self.curve], self.id[:, at]
        )
        return found[:, 0]

    @property
    def oracle(self) -> int:
        """Index of the single alpha that is best by the OOD labels themselves."""
        return int(np.argmax(self.ood[0, self.curve]))


def resampled(record: dict[str, Any], resamples: int = RESAMPLES) -> Resampled:
    """Resample the things that the pictures of one pair show."""
    parts = [record["correct"], *(row["correct"] for row in record["recipes"])]
    correct = {
        name: np.vstack([unpacked(part[name]) for part in parts]) for name in record["correct"]
    }
    times = draws(record["things"], resamples, record.get("all_things", 0))
    found = {name: accuracy(times[name], right) for name, right in correct.items()}
    means = [np.mean([found[name] for name in record[kind]], axis=0) for kind in ("id", "ood")]
    return Resampled(record, *means)


def draws(things: Mapping[str, Sequence[int]], resamples: int, count: int = 0) -> dict[str, Floats]:
    """Draw things with replacement, the same in every source that shows them.

    Args:
        things: Things by source.
        resamples: Number of draws.
        count: Number of things to draw from and of things drawn; by default up to the last one
            shown.

    Returns:
        By source, how often each of its drawings was drawn, shape (1 + resamples, drawings); once
        in row 0.
    """
    times = _times(count or 1 + max(thing for each in things.values() for thing in each), resamples)
    return {name: times[:, list(each)] for name, each in things.items()}


@lru_cache(maxsize=4)
def _times(count: int, resamples: int) -> Floats:
    """The same for all pairs of a benchmark; shape (1 + resamples, count)."""
    rng = np.random.default_rng(0)
    return np.vstack(
        [
            np.ones(count),
            *(
                np.bincount(rng.integers(count, size=count), minlength=count)
                for _ in range(resamples)
            ),
        ]
    )


def accuracy(times: Floats, right: NDArray[np.bool_]) -> Floats:
    """Share of the pictures that are recognised, each drawing weighted by how often it was drawn.

    Computed in whole numbers up to one division, so that every machine gives the same bits and
    equal accuracies stay equal.

    Args:
        times: Shape (draws, drawings).
        right: Shape (points, drawings, copies).

    Returns:
        Shape (draws, points).
    """
    recognised: Floats = times @ right.sum(axis=2, dtype=np.float64).T
    return recognised / (times.sum(axis=1, keepdims=True) * right.shape[2])


@dataclass(frozen=True)
class Estimate:
    """A mean over pairs.

    Attributes:
        value: The mean; ``None`` if no pair has a value.
        interval: Both ends; ``None`` if too few resamples have a value.
        pairs: Number of pairs with a value.
    """

    value: float | None
    interval: tuple[float, float] | None
    pairs: int

    @property
    def told(self) -> str:
        """The mean in points, and its interval if there is one."""
        if self.value is None:
            return "none"
        told = f"{100 * self.value:+.1f}"
        return told + (
            " [{:+.1f}, {:+.1f}]".format(*(100 * end for end in self.interval))
            if self.interval
            else ""
        )


def over_pairs(measured: Sequence[Floats]) -> Estimate:
    """Average a statistic over pairs, which are resampled along with the drawings.

    Args:
        measured: For each pair its values, shape (1 + resamples,), the measured one first; NaN for
            a missing value.
    """
    values = np.array(measured)
    defined = ~np.isnan(values[:, 0])
    if not defined.any():
        return Estimate(None, None, 0)
    values = values[defined]
    count, resamples = values.shape[0], values.shape[1] - 1
    chosen = np.random.default_rng(1).integers(count, size=(count, resamples))
    drawn = values[chosen, np.arange(1, resamples + 1)]
    seen = (~np.isnan(drawn)).sum(axis=0)
    means = np.where(seen > 0, np.nansum(drawn, axis=0) / np.maximum(seen, 1), np.nan)
    return Estimate(float(values[:, 0].mean()), percentile_interval(means), count)


def told_accuracies(pairs: Sequence[Resampled], place: Callable[[Resampled], int]) -> str:
    """Mean ID / OOD accuracy of one point of each pair, in %."""
    if not pairs:
        return ""
    both = [(pair.id[0, place(pair)], pair.ood[0, place(pair)]) for pair in pairs]
    return " / ".join(f"{100 * sum(side) / len(side):.1f}" for side in zip(*both, strict=True))
