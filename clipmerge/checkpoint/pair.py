"""Two or more checkpoints side by side: which keys are the same parameter, and whether they fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from clipmerge.checkpoint.header import DTYPES
from clipmerge.checkpoint.source import Checkpoint
from clipmerge.errors import CheckpointError, shorten
from clipmerge.layers import canonical_names, group_layers, tower_of

if TYPE_CHECKING:
    from torch import Tensor

Missing = Literal["error", "keep-zeroshot", "keep-finetuned"]

_MODEL_TYPES = {"clip": "full", "clip_vision_model": "vision", "clip_text_model": "text"}
_TOWER_KEYS = {"vision": ("vision_model.", "visual_projection."), "text": ("text_model.", "text_projection.")}
# Settings that change the function but not the shape of any weight, with transformers' defaults.
_FUNCTION_SETTINGS: dict[str, dict[str, Any]] = {
    "vision": {"hidden_act": "quick_gelu", "num_attention_heads": 12, "patch_size": 32, "image_size": 224},
    "text": {"hidden_act": "quick_gelu", "num_attention_heads": 8},
}
_DEFAULT_PROJECTION = 512
_TOWER_WORDS = {"full": "both towers", "vision": "the vision tower only", "text": "the text tower only"}


@dataclass(frozen=True)
class Pair:
    """The zero-shot checkpoint and its fine-tuned ones, aligned by canonical parameter name.

    Attributes:
        zeroshot: theta_0.
        finetuned: theta_1 ... theta_K; usually one.
        zeroshot_keys: Canonical name to key in the zero-shot file, in the file's order.
        finetuned_keys: The same for each fine-tuned file.
        tower: What the fine-tuned checkpoints hold: ``full``, ``vision`` or ``text``.
        notes: What the user should know, one line each.
    """

    zeroshot: Checkpoint
    finetuned: tuple[Checkpoint, ...]
    zeroshot_keys: dict[str, str]
    finetuned_keys: tuple[dict[str, str], ...]
    tower: str
    notes: list[str] = field(default_factory=list)

    @cached_property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Layer to its parameters' canonical names, network order; everything the zero-shot file holds."""
        return group_layers(self.zeroshot_keys)

    @property
    def is_partial(self) -> bool:
        """Whether the fine-tuned checkpoints are one tower of a full zero-shot model."""
        return self.tower != "full" and tower_of(self.zeroshot_keys) == "full"

    def merges(self, name: str) -> bool:
        """Whether a parameter is a float that every checkpoint holds, so that it can be merged."""
        if name not in self.zeroshot_keys or not all(name in keys for keys in self.finetuned_keys):
            return False
        entries = [self.zeroshot.entries[self.zeroshot_keys[name]]]
        entries += [c.entries[keys[name]] for c, keys in zip(self.finetuned, self.finetuned_keys, strict=True)]
        return all(entry.is_float for entry in entries) and not _is_buffer(name)

    def theta_0(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Map a zero-shot parameter; see `Checkpoint.tensor`."""
        return self.zeroshot.tensor(self.zeroshot_keys[name], start, stop)

    def theta_1(self, name: str, start: int = 0, stop: int | None = None, *, which: int = 0) -> Tensor:
        """Map a fine-tuned parameter; see `Checkpoint.tensor`."""
        return self.finetuned[which].tensor(self.finetuned_keys[which][name], start, stop)


def pair_checkpoints(
    zeroshot: Checkpoint,
    finetuned: list[Checkpoint],
    *,
    missing: Missing = "error",
    mixed_dtypes: bool = False,
) -> Pair:
    """Align checkpoints and refuse what does not fit; no weight is read.

    Args:
        zeroshot: theta_0.
        finetuned: theta_1 ... theta_K, at least one.
        missing: What to do with keys that only one side has; ``error`` lists them.
        mixed_dtypes: Accept different float dtypes (an output dtype was named).

    Returns:
        The aligned pair.

    Raises:
        CheckpointError: The first thing that does not fit, in one line.
    """
    pair = align(zeroshot, finetuned)
    for problem in find_mismatches(pair, missing=missing, mixed_dtypes=mixed_dtypes):
        raise CheckpointError(problem)
    return pair


def align(zeroshot: Checkpoint, finetuned: list[Checkpoint]) -> Pair:
    """Match keys by canonical name, without judging whether the checkpoints fit.

    Args:
        zeroshot: theta_0.
        finetuned: theta_1 ... theta_K, at least one.

    Returns:
        The aligned pair.

    Raises:
        CheckpointError: If a checkpoint is not a CLIP.
    """
    keys = {name: key for key, name in _names(zeroshot).items()}
    try:
        group_layers(keys)
    except CheckpointError as error:
        raise CheckpointError(f"{zeroshot.source}: {error}") from None
    finetuned_keys = tuple({name: key for key, name in _names(each).items()} for each in finetuned)
    towers = {tower_of(each) for each in finetuned_keys}
    pair = Pair(zeroshot, tuple(finetuned), keys, finetuned_keys, towers.pop() if len(towers) == 1 else "full")
    pair.notes.extend(each.note for each in (zeroshot, *finetuned) if each.note)
    if pair.is_partial:
        pair.notes.append(f"the fine-tuned checkpoint holds the {pair.tower} tower only; the rest stays zero-shot")
    for each in (zeroshot, *finetuned):
        if each.config is None:
            pair.notes.append(f"{each.source}: no config.json beside it, so its activation could not be compared")
    return pair


def _names(checkpoint: Checkpoint) -> dict[str, str]:
    model_type = _model_type(checkpoint.config or {})
    if model_type not in _MODEL_TYPES:
        raise CheckpointError(
            f"{checkpoint.source}: is a '{model_type}' checkpoint; clipmerge merges transformers' "
            "CLIPModel, CLIPVisionModel and CLIPTextModel"
        )
    try:
        return canonical_names(checkpoint.entries)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.source}: {error}") from None


def find_mismatches(pair: Pair, *, missing: Missing = "error", mixed_dtypes: bool = False) -> list[str]:
    """List what keeps checkpoints from being merged, most telling first, one line each.

    Args:
        pair: Aligned checkpoints.
        missing: As in `pair_checkpoints`.
        mixed_dtypes: As in `pair_checkpoints`.

    Returns:
        Messages; empty when everything fits.
    """
    problems = _tower_mismatch(pair)
    for which, checkpoint in enumerate([] if problems else pair.finetuned):
        problems += _config_mismatches(pair.zeroshot, checkpoint, pair.tower)
        if missing == "error":
            problems += _key_mismatches(pair, which)
        problems += _field_mismatch(pair, which, "shape", lambda entry: entry.shape)
        if mixed_dtypes:
            problems += _field_mismatch(pair, which, "kind", lambda entry: "float" if entry.is_float else "integer")
        else:
            problems += _field_mismatch(
                pair, which, "dtype", lambda entry: DTYPES[entry.dtype][0], " Or name one with `--dtype`."
            )
    # every family of CLIP has a logit_scale of that name
    if not problems and not any(pair.merges(name) for name in pair.zeroshot_keys if name != "logit_scale"):
        problems.append(
            f"{pair.finetuned[0].source}: has no weight in common with {pair.zeroshot.source}, so there is nothing to "
            "merge; is it a transformers CLIP checkpoint?"
        )
    return problems


def _tower_mismatch(pair: Pair) -> list[str]:
    ours = tower_of(pair.zeroshot_keys)
    if ours in ("full", pair.tower):
        return []
    return [
        f"{pair.zeroshot.source}: holds the {ours} tower only, the fine-tuned checkpoint {_TOWER_WORDS[pair.tower]}; "
        "give the zero-shot model that was fine-tuned"
    ]


def _config_mismatches(zeroshot: Checkpoint, finetuned: Checkpoint, tower: str) -> list[str]:
    if zeroshot.config is None or finetuned.config is None:
        return []
    problems = []
    for side, settings in _FUNCTION_SETTINGS.items():
        if tower not in ("full", side):
            continue
        ours, theirs = _section(zeroshot.config, side), _section(finetuned.config, side)
        for key, default in settings.items():
            a, b = ours.get(key, default), theirs.get(key, default)
            if a != b:
                problems.append(
                    f"the {side} towers differ in {key}: zeroshot {a}, finetuned {b}; the weights would merge "
                    "silently and wrongly. Use the base that was fine-tuned, or correct the wrong config.json"
                )
    if tower == "full":
        a, b = (c.config.get("projection_dim", _DEFAULT_PROJECTION) for c in (zeroshot, finetuned) if c.config)
        if a != b:
            problems.append(f"projection_dim differs: zeroshot {a}, finetuned {b}; these are not the same CLIP")
    return problems


def _model_type(config: dict[str, Any]) -> str:
    return str(config.get("model_type", "clip"))


def _section(config: dict[str, Any], side: str) -> dict[str, Any]:
    if _MODEL_TYPES.get(_model_type(config), "full") == side:
        return config
    # as transformers does: the old *_config_dict, where there is one, wins over *_config
    sections = (config.get(f"{side}_config"), config.get(f"{side}_config_dict"))
    return {key: value for section in sections if isinstance(section, dict) for key, value in section.items()}


def _key_mismatches(pair: Pair, which: int) -> list[str]:
    ours, theirs = pair.zeroshot_keys, pair.finetuned_keys[which]
    only_ours = [n for n in ours if n not in theirs and not _is_buffer(n) and _expected(pair, n)]
    only_theirs = [n for n in theirs if n not in ours and not _is_buffer(n)]
    problems = []
    for side, names in (("zero-shot", only_ours), ("fine-tuned", only_theirs)):
        if names:
            problems.append(
                f"{len(names)} keys are only in the {side} checkpoint: {shorten(names)}; if that is meant, set "
                "`missing=keep-zeroshot` or `missing=keep-finetuned`"
            )
    return problems


def _is_buffer(name: str) -> bool:
    """Old checkpoints carry ``position_ids``, new ones do not; both describe the same model."""
    return name.endswith(".position_ids")


def _expected(pair: Pair, name: str) -> bool:
    if not pair.is_partial:
        return True
    tower, projection = _TOWER_KEYS[pair.tower]
    has_projection = any(n.startswith(projection) for keys in pair.finetuned_keys for n in keys)
    return name.startswith(tower) or (has_projection and name.startswith(projection))


def _field_mismatch(pair: Pair, which: int, what: str, get: Callable[[Any], Any], advice: str = "") -> list[str]:
    keys = pair.finetuned_keys[which]
    shared = [name for name in pair.zeroshot_keys if name in keys and not _is_buffer(name)]
    differing = []
    for name in shared:
        a = get(pair.zeroshot.entries[pair.zeroshot_keys[name]])
        b = get(pair.finetuned[which].entries[keys[name]])
        if a != b:
            differing.append((name, a, b))
    if not differing:
        return []
    name, a, b = differing[0]
    return [
        f"{len(differing)} of {len(shared)} tensors differ in {what}; first {name}: zeroshot {a}, finetuned {b}. "
        f"Compare both with `clipmerge inspect`.{advice}"
    ]
