"""How each layer behaves, one file per measure.

A measure is a function of the `Objective` that returns `Measurements`; its keyword-only parameters are its options.
Statistics are taken per batch (so m-sharpness has m = batch size) and averaged over images. A `Statistic` says how it
is to be read: whether it is signed, whether its layers add up, its unit, and the heading of its column in the report.
Nothing else has to know about a new measure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipmerge.calibration.objective import Objective
    from clipmerge.measures._statistics import by_layer, statistic
    from clipmerge.planning.measurements import Measurements, Statistic

_HOMES = {
    "Objective": "clipmerge.calibration.objective",
    "Measurements": "clipmerge.planning.measurements",
    "Statistic": "clipmerge.planning.measurements",
    "by_layer": "clipmerge.measures._statistics",
    "statistic": "clipmerge.measures._statistics",
}

__all__ = ["Measurements", "Objective", "Statistic", "by_layer", "statistic"]


def __getattr__(name: str) -> Any:
    """Import what an author of a measure needs when it is asked for: listing the measures needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
