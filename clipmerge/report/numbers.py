"""Format and draw numbers: decimals per column, round ticks, and the geometry of bars."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


def decimals_for(values: Iterable[Any]) -> int | None:
    """Choose the number of decimals for a whole column so that its largest entry has three digits.

    Example:
        >>> decimals_for([0.21, -0.0004]), decimals_for([31.0, 2.5]), decimals_for([3e9])
        (3, 1, None)
    """
    top = max((abs(value) for value in values if isinstance(value, float)), default=0.0)
    if top == 0:
        return 2
    exponent = math.floor(math.log10(top))
    return None if exponent > 4 or exponent < -4 else max(0, 2 - exponent)


def format_number(value: Any, decimals: int | None, *, signed: bool = False) -> str:
    """Print a number with a column's decimals; one that is too small for them is printed as ``3e-05``.

    Example:
        >>> format_number(0.5, 2), format_number(-2e-5, 3), format_number(0.25, 1, signed=True)
        ('0.50', '-2e-05', '+0.2')
        >>> format_number(None, 2)
        '–'
    """
    if value is None:
        return "\N{EN DASH}"
    sign = "+" if signed and value else ""
    if decimals is None:
        return f"{value:{sign}.2e}" if value else "0"
    vanishes = abs(value) < 0.5 * 10.0**-decimals
    if vanishes and value and decimals > 1:
        return f"{value:{sign}.0e}"
    return f"{0.0 if vanishes else value:{sign}.{decimals}f}"


def setting_decimals(values: Iterable[Any]) -> int:
    """Two decimals for coefficients and densities, three if two would hide a difference."""
    return 2 if all(abs(value - round(value, 2)) < 1e-9 for value in values if isinstance(value, float)) else 3


@dataclass(frozen=True)
class Scale:
    """Range of a column of bars; it always includes zero, where every bar starts."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[Any], *, at_least: float = 0.0) -> Scale:
        """Fit the range to ``values``, at least up to ``at_least``."""
        numbers = [value for value in values if isinstance(value, float)]
        return cls(min([0.0, *numbers]), max([at_least, *numbers]))

    def bar(self, value: Any) -> tuple[float, float]:
        """Start and length of a bar in percent of the range; length 0, at zero, without a number."""
        number = value if isinstance(value, float) else 0.0
        span = self.high - self.low or 1.0
        return round(100 * (min(number, 0.0) - self.low) / span, 2), round(100 * abs(number) / span, 2)
