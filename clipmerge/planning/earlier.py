"""Plans and records of the format before, read as those of today."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipmerge.types import Json

#: New names of the fields at a path; ``None`` for those of a choice that is no longer made,
#: between what was learned and the straight path.
_Renamed = Mapping[str, str | None]
_STAGES: _Renamed = {"bought": "effect", "kept": "other_tasks"}
_TRACE: _Renamed = {"calibration": "cross_entropy", "divergence": "distillation_loss"}
_CHOICE: _Renamed = {
    "beyond": "extrapolation",
    "right": "accuracy",
    "finetuned_right": "finetuned_accuracy",
    "seen_right": "train_accuracy",
    "divergence": "distill_target",
    "part": None,
    "goal": None,
    "path_alpha": None,
    "path_goal": None,
    "gain": None,
    "corrupted_gain": None,
    "zeroshot_skill": None,
    "finetuned_rank": None,
}
_RENAMED: tuple[tuple[Sequence[str], _Renamed], ...] = (
    ((), _STAGES),
    (("seconds",), _STAGES),
    (("effect",), {"verdict": None}),
    (("calibration",), {"copies": "duplicates"}),
    (("choice",), _CHOICE),
    (("trace",), _TRACE),
    (("measurements", "choice"), _CHOICE),
    (("measurements", "trace"), _TRACE),
)


def upgrade_format(data: Json) -> Json:
    """Rename or drop fields of a plan or a record of the format before; wrong types are left to
    validation.
    """
    fields: Json = data
    for path, names in _RENAMED:
        fields = _rename_fields(fields, path, names)
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
    return fields


def _rename_fields(value: Any, path: Sequence[str], names: _Renamed) -> Any:
    """A copy in which the fields at a path have their new names."""
    if not isinstance(value, dict):
        return value
    if path:
        return {
            key: _rename_fields(inner, path[1:], names) if key == path[0] else inner
            for key, inner in value.items()
        }
    return {
        name: inner for key, inner in value.items() if (name := names.get(key, key)) is not None
    }
