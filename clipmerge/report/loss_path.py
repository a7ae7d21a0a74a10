"""The loss along the path, read from a record: its points, and the barrier."""

from __future__ import annotations

from collections.abc import Sequence

from clipmerge.planning.measurements import LossPath


def path_points(path: LossPath | None) -> list[tuple[float, float]]:
    """Pairs (alpha, loss) of a path, sorted by alpha; empty if no path was measured."""
    return sorted(zip(path.alphas, path.losses, strict=True)) if path else []


def loss_at(points: Sequence[tuple[float, float]], alpha: float) -> float | None:
    """Loss measured exactly at ``alpha``; never interpolated."""
    return next((loss for at, loss in points if abs(at - alpha) < 1e-6), None)


def barrier_of(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Barrier L(1/2) - (L(0) + L(1)) / 2 and the endpoints' average, in nats; ``None`` if a loss is missing.

    Example:
        >>> barrier_of([(0.0, 3.0), (0.5, 1.0), (1.0, 2.0)])
        (-1.5, 2.5)
    """
    start, middle, end = (loss_at(points, alpha) for alpha in (0.0, 0.5, 1.0))
    if start is None or middle is None or end is None:
        return None
    average = (start + end) / 2
    return middle - average, average
