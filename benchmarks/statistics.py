"""Figures of a method on pairs, with intervals that resample targets, then pairs, then pictures.

Seeds of one target share zero-shot model and test pictures, so a target is the unit that is drawn;
intervals are 95% percentile intervals over resamples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from benchmarks.pair_results import CURVE, Results
from clipmerge.evaluation.tradeoff import curve_height

RESAMPLES = 1000
ZEROSHOT, FINETUNED = "zero-shot", "fine-tuned"
_MAX_LOSS = 0.03


@dataclass(frozen=True)
class Accuracies:
    """Accuracies on one pair; row 0 as measured, the others with pictures drawn again.

    Attributes:
        id: Accuracy on the target, shape (1 + resamples, points).
        ood: Mean accuracy under the natural shifts, same shape.
        tasks: Mean accuracy on other tasks, same shape; ``None`` without any.
        sources: Accuracy under each natural shift and on each other task, by name.
    """

    id: np.ndarray
    ood: np.ndarray
    tasks: np.ndarray | None = None
    sources: Mapping[str, np.ndarray] = field(default_factory=dict)

    def point(self, at: int) -> Accuracies:
        """One of the points, shapes (1 + resamples, 1)."""
        tasks = None if self.tasks is None else self.tasks[:, [at]]
        sources = {name: each[:, [at]] for name, each in self.sources.items()}
        return Accuracies(self.id[:, [at]], self.ood[:, [at]], tasks, sources)


@cache
def accuracies(results: Results, method: str) -> Accuracies:
    """Accuracies of a method on a pair."""
    correct = results.correct(method)

    def of(names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: _resampled(results, name, correct[name]) for name in names}

    shifts, tasks = of(results.shifts), of(results.tasks)
    return Accuracies(
        of(["test"])["test"],
        np.mean(list(shifts.values()), axis=0),
        np.mean(list(tasks.values()), axis=0) if tasks else None,
        shifts | tasks,
    )


def _resampled(results: Results, source: str, right: np.ndarray) -> np.ndarray:
    """Accuracies on one source, shape (1 + resamples, points), its things drawn again."""
    columns = []
    for thing in results.told["things"][source]:
        column = _drawn(results.target, thing)
        columns.append(column)
    times = np.stack(columns, axis=1).astype(float)
    counts = times.sum(axis=1)
    times[counts == 0] = 1  # of few things, none may be drawn
    return times @ right.T / times.sum(axis=1, keepdims=True)


@cache
def _drawn(target: str, thing: int) -> np.ndarray:
    """How often a thing was drawn, the same for all pairs of a target; once in row 0."""
    rng = np.random.default_rng([sum(target.encode()), thing])
    times = rng.poisson(1.0, size=1 + RESAMPLES)
    times[0] = 1
    return times.astype(np.int8)


def curve_of(results: Results) -> Accuracies:
    """The WiSE-FT curve of a pair."""
    return accuracies(results, CURVE)


def point_of(results: Results, method: str) -> Accuracies | None:
    """The point for which a method stands, or nothing if it was not run.

    ``wise-ft 0.5`` is the alpha 0.5 of the curve. ``wise-ft-id`` and ``recalibrated`` are the
    points of their curves that the validation pictures choose; ``anew`` and ``continued`` are those
    that the fifth of the pictures chooses which they did not learn from, by the most accurate
    alpha, or with ``-3`` the smallest within 3 points of alpha 1.
    """
    if method == ZEROSHOT:
        return curve_of(results).point(0)
    if method == FINETUNED:
        return curve_of(results).point(-1)
    if method.startswith(f"{CURVE} "):
        alpha = float(method.removeprefix(CURVE))
        alphas = results.methods[CURVE]["alphas"]
        return curve_of(results).point(alphas.index(alpha)) if alpha in alphas else None
    base = method.removesuffix("-3")
    if base == "wise-ft-id" and base not in results.methods:
        base = CURVE
    if base not in results.methods:
        return None
    found = accuracies(results, base)
    if "alphas" not in results.methods[base]:
        return found
    sources = results.methods[base]["correct"]
    source = "choose" if "choose" in sources else "val"
    if source not in sources:
        return None
    max_loss = _MAX_LOSS if method.endswith("-3") else None
    return found.point(chosen_alpha(results, base, source, max_loss))


def chosen_alpha(results: Results, method: str, source: str, max_loss: float | None = None) -> int:
    """Index of the alpha that pictures of ``source`` choose.

    Args:
        results: Results of a pair.
        method: A method with a curve.
        source: Source of the pictures that choose.
        max_loss: If given, the smallest alpha that loses at most so much of the fine-tuned
            accuracy; by default the most accurate alpha, and the smaller of equals.
    """
    right = results.correct(method)[source].mean(axis=1)
    if max_loss is None:
        return int(right.argmax())
    least = right[-1] - max_loss - 1e-9
    return int((right >= least).argmax())


def gain(point: Accuracies, curve: Accuracies, axis: str = "ood") -> np.ndarray:
    """Accuracy on an axis, ``ood`` or ``tasks``, above the curve's, by clipmerge's definition.

    Example:
        >>> curve = Accuracies(np.array([[0.2, 0.6, 0.8]]), np.array([[0.7, 0.8, 0.5]]))
        >>> gain(Accuracies(np.array([[0.7]]), np.array([[0.7]])), curve).round(3).tolist()
        [0.05]
    """
    height = curve_height(curve.id, getattr(curve, axis), point.id)
    return getattr(point, axis)[:, 0] - height[:, 0]


@dataclass(frozen=True)
class Estimate:
    """A mean in points, and its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        value, low, high = (round(each, 1) + 0.0 for each in (self.value, self.low, self.high))
        return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"  # adding 0.0 makes -0.0 positive


def over_targets(values: Sequence[tuple[str, np.ndarray]]) -> Estimate:
    """Average a figure over pairs, each target counted once.

    Args:
        values: Target of each pair, and its figure, shape (1 + resamples,), the measured one first.
    """
    by_target: dict[str, list[np.ndarray]] = defaultdict(list)
    for target, each in values:
        by_target[target].append(each)
    targets = [np.stack(each) for each in by_target.values()]
    measured = np.mean([each[:, 0].mean() for each in targets])
    rng = np.random.default_rng(1)
    drawn = rng.integers(len(targets), size=(RESAMPLES, len(targets)))
    means = np.zeros(drawn.shape)
    for number, pairs in enumerate(targets):
        is_drawn = drawn == number
        means[is_drawn] = _drawn_means(pairs, int(is_drawn.sum()), rng)
    low, high = np.percentile(means.mean(axis=1), [2.5, 97.5])
    return Estimate(100 * float(measured), 100 * low, 100 * high)


def _drawn_means(pairs: np.ndarray, times: int, rng: np.random.Generator) -> np.ndarray:
    """Means over one target, so many times, its pairs and their pictures drawn again."""
    chosen = rng.integers(len(pairs), size=(times, len(pairs)))
    pictures = rng.integers(1, pairs.shape[1], size=(times, 1))
    return pairs[chosen, pictures].mean(axis=1)
