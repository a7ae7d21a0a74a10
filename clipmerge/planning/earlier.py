"""Plans and records of the format before, read as those of today."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_CHOICE = {
    "beyond": "extrapolation",
    "right": "accuracy",
    "finetuned_right": "finetuned_accuracy",
    "seen_right": "train_accuracy",
    "divergence": "distill_target",
}
# Fields of a choice that is no longer made: between what was learned and the straight path.
_GONE = (
    "part",
    "goal",
    "path_alpha",
    "path_goal",
    "gain",
    "corrupted_gain",
    "zeroshot_skill",
    "finetuned_rank",
)
_TRACE = {"calibration": "cross_entropy", "divergence": "distillation_loss"}
_STAGES = {"bought": "effect", "kept": "other_tasks"}


def upgrade(data: dict[str, Any]) -> dict[str, Any]:
    """Rename or drop fields of a plan or a record of the format before; wrong types are left to
    validation.
    """
    fields = _renamed(data, {"bought": "effect", "kept": "other_tasks"})
    verdict = fields.pop("verdict", "")
    is_plan = "finding" in fields or "worded" in fields
    text = fields.pop("finding", "") if is_plan else verdict
    if text:
        fields["decision"] = {"kind": "note" if is_plan else "earlier", "values": {"text": text}}
    worded = fields.pop("worded", None)
    if isinstance(worded, dict):
        fields["layer_digests"] = {
            name: str(digests).partition("-")[0] for name, digests in worded.items()
        }
    fields.pop("verdict_digest", None)
    if isinstance(fields.get("effect"), dict):
        fields["effect"] = {
            name: value for name, value in fields["effect"].items() if name != "verdict"
        }
    _rename_in(fields, "calibration", {"copies": "duplicates"})
    _rename_in(fields, "seconds", _STAGES)
    if isinstance(fields.get("measurements"), dict) and "measure" in fields["measurements"]:
        fields["measurements"] = dict(fields["measurements"])  # of a plan
        _rename_in(fields["measurements"], "choice", _CHOICE, _GONE)
        _rename_in(fields["measurements"], "trace", _TRACE)
    _rename_in(fields, "choice", _CHOICE, _GONE)
    _rename_in(fields, "trace", _TRACE)
    return fields


def _rename_in(
    fields: dict[str, Any], name: str, names: Mapping[str, str], gone: Collection[str] = ()
) -> None:
    if isinstance(fields.get(name), dict):
        fields[name] = _renamed(fields[name], names, gone)


def _renamed(
    fields: Mapping[str, Any], names: Mapping[str, str], gone: Collection[str] = ()
) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in fields.items() if name not in gone}
