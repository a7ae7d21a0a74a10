"""Choose the files of a model on the Hub to fetch: one set of weights, and the small files beside it."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch

from clipmerge.errors import CheckpointError, shorten
from clipmerge.hub.ids import HubId

INDEX = "model.safetensors.index.json"
_SIDE_FILES = ("*.json", "*.txt", "*.model")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
STANDARD = {"model.safetensors", INDEX}
_STANDARD_WEIGHTS = (
    ("model.safetensors",),
    (INDEX, "model-*-of-*.safetensors"),
    ("open_clip_model.safetensors",),
    ("adapter_model.safetensors",),
)
PICKLED_INDEX = "pytorch_model.bin.index.json"
# only the tensors are read, and only if there is nothing better
_PICKLED_WEIGHTS = (
    ("pytorch_model.bin",),
    (PICKLED_INDEX, "pytorch_model-*-of-*.bin"),
    ("open_clip_pytorch_model.bin",),
    ("adapter_model.bin",),
)


def choose_files(names: Iterable[str], hub_id: HubId, *, weights: bool = True) -> list[str]:
    """Pick the files that a merge needs from a listing: one set of weights, and the small files beside it.

    ``model.safetensors`` is preferred to shards, OpenCLIP's file and an adapter, and all of these to PyTorch's own
    files. Variants such as ``model.fp16.safetensors`` are never used, and folders are not searched.
    """
    root = [name for name in names if "/" not in name]
    side = [name for name in root if _matches(name, _SIDE_FILES) and not name.endswith(".index.json")]
    return sorted(side + (choose_weights(root, hub_id) if weights else []))


def choose_weights(root: list[str], hub_id: HubId) -> list[str]:
    """Pick one set of weights from the names in a model's root."""
    chosen = _first_set(root, _STANDARD_WEIGHTS)
    if chosen:
        return chosen
    if "model_index.json" in root:
        raise CheckpointError(
            f"{hub_id}: is a pipeline of diffusers, whose CLIP is its text encoder; get it with `hf download "
            f"{hub_id.repo_id} --include 'text_encoder/*' --local-dir DIR`, and give DIR/text_encoder"
        )
    others = [name for name in root if name.endswith(".safetensors")]
    if len(others) == 1:
        return others
    if others:
        raise CheckpointError(
            f"{hub_id}: no model.safetensors, but {shorten(others)}. Download one of them and pass that file."
        )
    chosen = _first_set(root, _PICKLED_WEIGHTS)
    if chosen:
        return chosen
    pickles = [name for name in root if _matches(name, _PICKLES)]
    if pickles:
        raise CheckpointError(
            f"{hub_id}: no weights under a known name, but {shorten(pickles)}. "
            "Download the one you mean and pass that file."
        )
    raise CheckpointError(f"{hub_id}: no weights among its {len(root)} files. Pass a model with safetensors.")


def _first_set(root: list[str], sets: Iterable[tuple[str, ...]]) -> list[str]:
    """The files of the first set of weights whose first file exists."""
    patterns = next((patterns for patterns in sets if patterns[0] in root), ())
    return [name for name in root if _matches(name, patterns)]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
