"""Plans and records of the format before, read as those of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CHOICE = {
    "part": "shrink",
    "beyond": "extrapolation",
    "goal": "objective",
    "right": "accuracy",
    "path_goal": "path_objective",
    "finetuned_right": "finetuned_accuracy",
    "seen_right": "train_accuracy",
    "divergence": "distill_target",
}
_TRACE = {"calibration": "cross_entropy", "divergence": "distillation_loss"}
_STAGES = {"bought": "effect", "kept": "other_tasks"}


def upgrade(data: dict[str, Any]) -> dict[str, Any]:
    """Rename the fields of a plan or a record of the format before; wrong types are left to
    validation.
    """
    fields = _renamed(data, {"bought": "effect", "kept": "other_tasks"})
    _rename_in(fields, "calibration", {"copies": "duplicates"})
    _rename_in(fields, "seconds", _STAGES)
    if isinstance(fields.get("measurements"), dict) and "measure" in fields["measurements"]:
        fields["measurements"] = dict(fields["measurements"])  # of a plan
        _rename_in(fields["measurements"], "choice", _CHOICE)
        _rename_in(fields["measurements"], "trace", _TRACE)
    _rename_in(fields, "choice", _CHOICE)
    _rename_in(fields, "trace", _TRACE)
    return fields


def _rename_in(fields: dict[str, Any], name: str, names: Mapping[str, str]) -> None:
    if isinstance(fields.get(name), dict):
        fields[name] = _renamed(fields[name], names)


def _renamed(fields: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in fields.items()}
