"""Numbers into ink: the record's columns, number formats, bar geometry and the loss chart's coordinates.

The template and the terminal table draw what these functions choose and place.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from markupsafe import Markup

ADDITIVE = ("barrier", "loss_drop")  # shares: their sum over layers means something
WIDTH, HEIGHT = 600, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 586, 28, 282
_Axis = Callable[[float], float]
_INSET = 28  # keeps the endpoint labels, above or below their points, inside the frame


def is_number(value: Any) -> TypeGuard[float]:
    """Say whether ``value`` is a finite int or float (a bool is not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def decimals_for(values: Iterable[Any]) -> int | None:
    """Choose one number of decimals for a whole column, so that its largest entry has three digits.

    Args:
        values: The column; what is not a finite number is passed over.

    Returns:
        Decimals to print, or ``None`` where only scientific notation is readable.

    Example:
        >>> decimals_for([0.21, -0.0004]), decimals_for([31.0, 2.5]), decimals_for([3e9])
        (3, 1, None)
    """
    top = max((abs(value) for value in values if is_number(value)), default=0.0)
    if top == 0:
        return 2
    exponent = math.floor(math.log10(top))
    return None if exponent > 4 or exponent < -4 else max(0, 2 - exponent)


def format_number(value: Any, decimals: int | None, *, signed: bool = False) -> str:
    """Print a number with a column's decimals; too small for them, it falls back to ``3e-05``.

    Example:
        >>> format_number(0.5, 2), format_number(-2e-5, 3), format_number(0.25, 1, signed=True)
        ('0.50', '-2e-05', '+0.2')
        >>> format_number(None, 2)
        '–'
    """
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, list | tuple):
        return " / ".join(format_number(part, decimals, signed=signed) for part in value)
    if not is_number(value):
        return str(value)
    sign = "+" if signed and value else ""
    if decimals is None:
        return f"{value:{sign}.2e}" if value else "0"
    vanishes = abs(value) < 0.5 * 10.0**-decimals
    if vanishes and value and decimals > 1:
        return f"{value:{sign}.0e}"
    return f"{0.0 if vanishes else value:{sign}.{decimals}f}"


def setting_decimals(values: Iterable[Any]) -> int:
    """Two decimals for coefficients and densities, three where two would hide a difference."""
    return 2 if all(abs(value - round(value, 2)) < 1e-9 for value in values if is_number(value)) else 3


@dataclass(frozen=True)
class Scale:
    """Range of a column of bars; always holds zero, from which every bar starts."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[Any], *, at_least: float = 0.0) -> Scale:
        """Fit the range to ``values``, reaching up to ``at_least`` in any case."""
        numbers = [float(value) for value in values if is_number(value)]
        return cls(min([0.0, *numbers]), max([at_least, *numbers]))

    def bar(self, value: Any) -> tuple[float, float]:
        """Place a bar: its start and its length in percent of the range; length 0 without a number."""
        span = self.high - self.low
        if not is_number(value) or span <= 0:
            return round(self.zero, 2), 0.0
        start = min(value, 0.0) - self.low
        return round(100 * start / span, 2), round(100 * abs(value) / span, 2)

    @property
    def zero(self) -> float:
        """Where zero lies, in percent of the range."""
        span = self.high - self.low
        return round(-100 * self.low / span, 2) if span > 0 else 0.0


@dataclass(frozen=True)
class Column:
    """One number per layer: how it is headed, drawn and explained."""

    key: str
    title: str
    symbol: str
    explain: str
    values: dict[str, Any]
    decimals: int | None
    scale: Scale
    kind: str = "measured"  # or "decided"
    signed: bool = False
    unit: str = ""

    @property
    def drawn(self) -> bool:
        """Whether a bar says more than the number: not for outlier scores, read against a limit, nor for ranges."""
        return self.key not in (*_SCORES, "alpha_range")

    def text(self, value: Any) -> str:
        """Print one of the column's numbers."""
        text = format_number(value, self.decimals, signed=self.signed)
        return text.replace(" / ", " to ") if self.key == "alpha_range" else text

    def total(self, layers: Sequence[str]) -> Any:
        """Several layers in one number: the sum of shares that add up, the median of anything else."""
        numbers = [self.values[layer] for layer in layers if is_number(self.values.get(layer))]
        if not numbers:
            return None
        return sum(numbers) if self.key in ADDITIVE else statistics.median(numbers)


_SCORES = ("z", "stability")

_B = Markup("<i>B</i><sub>l</sub>")
_G = Markup("<i>G</i><sub>l</sub>")

# Heading, symbol, and the line of explanation under the table.
_KNOWN = {
    "alpha": (
        "alpha",
        "coefficient",
        "Coefficient alpha (0 = zero-shot, 1 = fine-tuned): how far the layer moves along its task vector.",
    ),
    "alpha_range": (
        "alpha range",
        "learned",
        "Alpha range: smallest and largest of the layer's learned coefficients; its alpha is their mean.",
    ),
    "density": (
        "density",
        "share kept",
        "Density (share of the task vector kept): the mask returns the remaining entries to zero-shot.",
    ),
    "change": (
        "relative change",
        Markup("‖<i>τ</i><sub>l</sub>‖ / ‖<i>θ</i><sub>0,l</sub>‖"),
        "Relative change: length of the layer's task vector (fine-tuned minus zero-shot) divided by "
        "the length of its zero-shot weights.",
    ),
    "barrier": (
        "barrier share",
        _B,
        "Barrier share " + _B + ": the layer's part of the barrier, the loss at the midpoint minus the endpoints' "
        "average. Positive: the layer raises the loss at the midpoint above that average.",
    ),
    "loss_drop": (
        "loss-drop share",
        _G,
        "Loss-drop share " + _G + ": the layer's part of the change in loss from zero-shot to fine-tuned. "
        "Negative: the layer lowers the loss.",
    ),
    "z": (
        "outlier score",
        "z",
        "Outlier score z: how far the layer stands out from the other layers, in robust standard deviations.",
    ),
    "stability": (
        "stability",
        "of resamples",
        "Stability: share of bootstrap resamples of the calibration batches in which the layer stands out.",
    ),
}


def columns_of(record: dict[str, Any]) -> list[Column]:
    """Collect every number per layer: settings, relative change, the measures' statistics, outlier scores.

    Args:
        record: The merge's record.

    Returns:
        Columns in the order they are shown; alpha and density first, statistics without a value left out.
    """
    layers: dict[str, dict[str, Any]] = record["layers"]
    columns = []
    for key, default in (("alpha", None), ("density", 1.0)):
        values = {layer: entry.get(key, default) for layer, entry in layers.items()}
        scale = Scale.of(values.values(), at_least=1.0)
        columns.append(Column(key, *_KNOWN[key], values, setting_decimals(values.values()), scale, "decided"))
    ranges = {layer: entry["alpha_range"] for layer, entry in layers.items() if entry.get("alpha_range")}
    if ranges:
        columns.append(Column("alpha_range", *_KNOWN["alpha_range"], ranges, 2, Scale(0.0, 1.0), "decided"))
    tables = {"change": {layer: entry["change"] for layer, entry in layers.items() if "change" in entry}}
    for source in (record.get("measurements") or {}, record.get("straggler_scores") or {}):
        for key in dict.fromkeys(key for row in source.values() for key in row):
            tables[key] = {layer: row[key] for layer, row in source.items() if key in row}
    measure = (record["recipe"].get("measure") or {}).get("name")
    return columns + [_statistic(key, tables[key], measure) for key in tables if tables[key]]


def _statistic(key: str, values: dict[str, Any], measure: str | None) -> Column:
    name = key.replace("_", " ")
    of = f"statistic of the measure {measure}" if measure else "as recorded"
    title, symbol, explain = _KNOWN.get(key, (name, "", f"{name}: {of}."))
    if key == "stability":
        return Column(key, title, symbol, explain, values, 2, Scale(0.0, 1.0))
    decimals = 1 if key == "z" else decimals_for(values.values())
    scale = Scale.of(values.values())
    unit = "nats" if key in ADDITIVE else ""
    return Column(key, title, symbol, explain, values, decimals, scale, signed=bool(unit) or scale.low < 0, unit=unit)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values that cut ``[low, high]`` into about ``count`` steps: 1, 2, 2.5 or 5 times a power of ten.

    Example:
        >>> ticks(0.2, 3.4)
        [1.0, 2.0, 3.0]
        >>> ticks(0.0, 1.0)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / count
    if not raw > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


@dataclass(frozen=True)
class Point:
    """One loss on the path: coordinates in the chart, and what to write beside it."""

    x: float
    y: float
    alpha: float
    loss: float
    label_y: float


@dataclass(frozen=True)
class PathChart:
    """Where everything in the loss chart goes, in units of its view box."""

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


def path_points(path: dict[str, Any] | None) -> list[tuple[float, float]]:
    """Pairs (alpha, loss) of a record's path, sorted by alpha; pairs without finite numbers are left out."""
    if not path:
        return []
    pairs = zip(path.get("alphas") or [], path.get("losses") or [], strict=False)
    return sorted((float(alpha), float(loss)) for alpha, loss in pairs if is_number(alpha) and is_number(loss))


def loss_at(points: Sequence[tuple[float, float]], alpha: float) -> float | None:
    """Loss measured at ``alpha`` itself; never interpolated."""
    return next((loss for at, loss in points if abs(at - alpha) < 1e-6), None)


def barrier_of(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Barrier L(1/2) - (L(0) + L(1)) / 2 and that average, in nats; ``None`` if one of the three is missing.

    Example:
        >>> barrier_of([(0.0, 3.0), (0.5, 1.0), (1.0, 2.0)])
        (-1.5, 2.5)
    """
    start, middle, end = (loss_at(points, alpha) for alpha in (0.0, 0.5, 1.0))
    if start is None or middle is None or end is None:
        return None
    average = (start + end) / 2
    return middle - average, average


def path_chart(path: dict[str, Any] | None) -> PathChart | None:
    """Lay out the loss chart.

    Args:
        path: ``{"alphas": [...], "losses": [...]}``, losses in nats; may be empty or ``None``.

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
    """An endpoint's label goes above it where the curve falls away below, and below it otherwise."""
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
    """Beside the gap at alpha 0.5 where it is tall enough for text, above it otherwise."""
    if middle is None:
        return 0.0
    _, curve, straight = middle
    if abs(curve - straight) > 40:
        return round((curve + straight) / 2 + 5, 1)
    return round(min(curve, straight) - 14, 1)
