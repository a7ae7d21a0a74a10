"""The loss chart of the page: the losses on the path, and the coordinates of everything drawn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clipmerge.planning.measurements import LossPath
from clipmerge.report.numbers import ticks

WIDTH, HEIGHT = 600, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 586, 28, 282
_Axis = Callable[[float], float]
_INSET = 28  # keeps the endpoint labels, above or below their points, inside the frame


@dataclass(frozen=True)
class Point:
    """One loss on the path: its coordinates in the chart, and its label."""

    x: float
    y: float
    alpha: float
    loss: float
    label_y: float


@dataclass(frozen=True)
class PathChart:
    """Coordinates of everything in the loss chart, in units of its view box."""

    points: tuple[Point, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    barrier: float | None
    average: float | None
    middle: tuple[float, float, float] | None  # alpha 0.5: x, y on the curve, y on the straight line
    middle_label_y: float

    @property
    def line(self) -> str:
        """The curve, as an SVG points list."""
        return " ".join(f"{point.x},{point.y}" for point in self.points)


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


def path_chart(path: LossPath | None) -> PathChart | None:
    """Lay out the loss chart.

    Args:
        path: The loss along the path, in nats; ``None`` if it was not measured.

    Returns:
        Coordinates for the template, or ``None`` with fewer than two points.
    """
    pairs = path_points(path)
    if len(pairs) < 2 or pairs[0][0] == pairs[-1][0]:
        return None
    low, high = min(loss for _, loss in pairs), max(loss for _, loss in pairs)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    per_nat = (_BOTTOM - _TOP - 2 * _INSET) / (high - low)

    def to_x(alpha: float) -> float:
        return round(_LEFT + (alpha - pairs[0][0]) / (pairs[-1][0] - pairs[0][0]) * (_RIGHT - _LEFT), 1)

    def to_y(loss: float) -> float:
        return round(_BOTTOM - _INSET - (loss - low) * per_nat, 1)

    found = barrier_of(pairs)
    middle = None
    if found:
        barrier, average = found
        middle = (to_x(0.5), to_y(average + barrier), to_y(average))
    return PathChart(
        points=_points(pairs, to_x, to_y),
        x_ticks=tuple((to_x(tick), f"{tick:g}") for tick in ticks(pairs[0][0], pairs[-1][0], 4)),
        y_ticks=_y_ticks(low, high, to_y),
        barrier=found[0] if found else None,
        average=found[1] if found else None,
        middle=middle,
        middle_label_y=_middle_label_y(middle),
    )


def _points(pairs: list[tuple[float, float]], to_x: _Axis, to_y: _Axis) -> tuple[Point, ...]:
    """Put an endpoint's label above it if the curve falls away below, and below it otherwise."""
    neighbour = [pairs[1], *pairs[:-1]]
    return tuple(
        Point(to_x(alpha), to_y(loss), alpha, loss, to_y(loss) + (-12 if loss > beside[1] else 22))
        for (alpha, loss), beside in zip(pairs, neighbour, strict=True)
    )


def _y_ticks(low: float, high: float, to_y: _Axis) -> tuple[tuple[float, str], ...]:
    margin = _INSET * (high - low) / (_BOTTOM - _TOP - 2 * _INSET)
    values = [tick for tick in ticks(low - margin, high + margin) if tick >= min(0.0, low)]
    step = min((b - a for a, b in itertools.pairwise(values)), default=1.0)
    decimals = len(f"{step:.6f}".rstrip("0").partition(".")[2])
    return tuple((to_y(tick), f"{tick:.{decimals}f}") for tick in values)


def _middle_label_y(middle: tuple[float, float, float] | None) -> float:
    """Put the label beside the gap at alpha 0.5 if it is tall enough for text, and above it otherwise."""
    if middle is None:
        return 0.0
    _, curve, straight = middle
    if abs(curve - straight) > 40:
        return round((curve + straight) / 2 + 5, 1)
    return round(min(curve, straight) - 14, 1)
