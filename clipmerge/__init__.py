"""Make a fine-tuned CLIP robust again by merging it with its zero-shot self, layer by layer.

Every command of the command line is a function here, of the same name and with the same result:

    >>> import clipmerge
    >>> result = clipmerge.merge("zeroshot", "finetuned", "auto", data="val", output="merged")  # doctest: +SKIP

Names are imported when they are first used, so that ``import clipmerge`` takes a millisecond.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipmerge.api._results import ConvertResult as ConvertResult
    from clipmerge.api._results import EvaluateResult as EvaluateResult
    from clipmerge.api._results import InspectResult as InspectResult
    from clipmerge.api._results import MergeResult as MergeResult
    from clipmerge.api._results import SweepResult as SweepResult
    from clipmerge.api.apply import apply as apply
    from clipmerge.api.convert import convert as convert
    from clipmerge.api.evaluate import evaluate as evaluate
    from clipmerge.api.inspect import inspect as inspect
    from clipmerge.api.merge import merge as merge
    from clipmerge.api.merge_models import merge_models as merge_models
    from clipmerge.api.merge_models import merge_state_dicts as merge_state_dicts
    from clipmerge.api.plan import plan as plan
    from clipmerge.api.push import push as push
    from clipmerge.api.sweep import sweep as sweep
    from clipmerge.errors import CheckpointError as CheckpointError
    from clipmerge.errors import ClipmergeError as ClipmergeError
    from clipmerge.errors import DataError as DataError
    from clipmerge.errors import HubError as HubError
    from clipmerge.errors import MeasureError as MeasureError
    from clipmerge.errors import OutputError as OutputError
    from clipmerge.errors import PlanError as PlanError
    from clipmerge.errors import RecipeError as RecipeError
    from clipmerge.errors import UsageError as UsageError
    from clipmerge.planning.measurements import Measurements as Measurements
    from clipmerge.planning.plan import Plan as Plan
    from clipmerge.planning.recipe import Recipe as Recipe
    from clipmerge.planning.recipe import load_recipe as load_recipe
    from clipmerge.progress import Progress as Progress
    from clipmerge.publish.push import Published as Published
    from clipmerge.request import Calibration as Calibration

__version__ = "0.1.0"

_NAMES = {
    "clipmerge.api._results": ("ConvertResult", "EvaluateResult", "InspectResult", "MergeResult", "SweepResult"),
    "clipmerge.api.apply": ("apply",),
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
    "clipmerge.planning.plan": ("Plan",),
    "clipmerge.planning.recipe": ("Recipe", "load_recipe"),
    "clipmerge.progress": ("Progress",),
    "clipmerge.publish.push": ("Published",),
    "clipmerge.request": ("Calibration",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used."""
        if name not in _HOMES:
            raise AttributeError(f"module 'clipmerge' has no attribute '{name}'")
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return value

    def __dir__() -> list[str]:
        """List the public names, imported or not."""
        return __all__
