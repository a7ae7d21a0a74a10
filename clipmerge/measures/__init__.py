"""Measurements of each layer's behaviour, one file per measure.

A measure is a function of the `Objective` that returns `Measurements`; its keyword-only parameters
are its options. Statistics are computed per batch (so m-sharpness has m = batch size) and averaged
over images. A `Statistic` carries its interpretation: whether it is signed, its unit, and the
heading of its column in the report. No other file needs to know about a new measure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipmerge.learning.objective import Objective
    from clipmerge.measures._statistics import by_layer, statistic
    from clipmerge.planning.measurements import Measurements, Statistic

_HOMES = {
    "Objective": "clipmerge.learning.objective",
    "Measurements": "clipmerge.planning.measurements",
    "Statistic": "clipmerge.planning.measurements",
    "by_layer": "clipmerge.measures._statistics",
    "statistic": "clipmerge.measures._statistics",
}

__all__ = [
    "Measurements",
    "Objective",
    "Statistic",
    "by_layer",
    "statistic",
]


def __getattr__(name: str) -> Any:
    """Import names for authors of measures on first use, because listing the measures must not
    import torch.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
