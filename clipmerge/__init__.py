"""Make a fine-tuned CLIP robust again by merging it with its zero-shot self, layer by layer.

Every command of the command line is a function here, with the same name and the same result:

    >>> import clipmerge
    >>> result = clipmerge.merge("zeroshot", "finetuned", "auto", data="val", output="merged")  # doctest: +SKIP

Names are imported on first use, so that ``import clipmerge`` takes a millisecond.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# modules of the public names; `__init__.pyi` repeats them for type checkers
_NAMES = {
    "clipmerge.api._results": (
        "BenchResult",
        "ConvertResult",
        "EvaluateResult",
        "InspectResult",
        "MergeResult",
        "SweepResult",
    ),
    "clipmerge.api.apply": ("apply",),
    "clipmerge.api.bench": ("bench",),
    "clipmerge.api.callback": ("RobustMergeCallback",),
    "clipmerge.api.convert": ("convert",),
    "clipmerge.api.evaluate": ("evaluate",),
    "clipmerge.api.inspect": ("inspect",),
    "clipmerge.api.merge": ("merge",),
    "clipmerge.api.merge_models": ("merge_models", "merge_state_dicts"),
    "clipmerge.api.plan": ("plan",),
    "clipmerge.api.push": ("push",),
    "clipmerge.api.sweep": ("sweep",),
    "clipmerge.errors": (
        "CheckpointError",
        "ClipmergeError",
        "DataError",
        "HubError",
        "MeasureError",
        "OutputError",
        "PlanError",
        "RecipeError",
        "UsageError",
    ),
    "clipmerge.planning.measurements": ("Measurements",),
    "clipmerge.output.record": ("Published",),
    "clipmerge.planning.plan": ("Plan",),
    "clipmerge.planning.recipe": ("Recipe", "load_recipe"),
    "clipmerge.progress": ("Progress",),
    "clipmerge.request": ("Calibration",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'clipmerge' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return __all__
