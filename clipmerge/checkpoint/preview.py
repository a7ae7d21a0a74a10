"""Preview a model on the Hub by its headers, so that a pair that does not match is refused without
a download.

Only models that are not in the cache are previewed. Names, shapes and dtypes come from range
requests, the configuration from its file. A previewed checkpoint has no weights to read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from clipmerge.checkpoint.alignment import align_checkpoints
from clipmerge.checkpoint.opening import open_checkpoint, refuse_quantised
from clipmerge.checkpoint.source import Checkpoint
from clipmerge.config import Missing
from clipmerge.errors import CheckpointError
from clipmerge.files.paths import local_path
from clipmerge.files.safetensors import DTYPES, FLOATS, TensorEntry
from clipmerge.files.side_files import read_side_json

# Weight files that can be compared by their headers, and the configurations that describe them.
_CONFIGS = {
    "model.safetensors": "config.json",
    "model.safetensors.index.json": "config.json",
    "open_clip_model.safetensors": "open_clip_config.json",
}


def preview_checkpoint(source: str) -> Checkpoint | None:
    """Describe a model on the Hub without its weights; ``None`` if it is here, in the cache, or no
    safetensors.
    """
    from clipmerge.hub.download import choose_weights, remote_metadata, resolve
    from clipmerge.hub.ids import parse_hub_id

    hub_id = None if local_path(source).exists() else parse_hub_id(source)
    if hub_id is None:
        return None
    snapshot = resolve(hub_id)
    if snapshot.note is not None:
        return None
    weights = choose_weights(snapshot.files, snapshot.hub_id)
    config = next((_CONFIGS[name] for name in sorted(weights) if name in _CONFIGS), None)
    files = tuple(Path(name) for name in sorted(weights) if name.endswith(".safetensors"))
    if config is None or not files or not snapshot.missing(weights):
        return None
    folder = snapshot.download([name for name in (config,) if name in snapshot.files])
    entries = {}
    for name, (dtype, shape) in remote_metadata(snapshot.hub_id, weights).items():
        if dtype not in DTYPES:
            kinds = ", ".join(sorted(FLOATS))
            raise CheckpointError(
                f"{snapshot.hub_id}, {name}: has dtype {dtype}; clipmerge merges {kinds}"
            )
        entries[name] = TensorEntry(Path(), dtype, shape, 0, math.prod(shape) * DTYPES[dtype][1])
    described = read_side_json(folder, config)
    refuse_quantised(source, entries, described)
    return Checkpoint(
        source, snapshot.revision, folder, files, entries, described, sharded=len(files) > 1
    )


def compare_before_download(
    zeroshot: str,
    finetuned: Sequence[str],
    *,
    missing: Missing = "error",
    mixed_dtypes: bool = False,
) -> None:
    """Refuse checkpoints that do not match, before any weights are downloaded."""
    previews = [preview_checkpoint(source) for source in (zeroshot, *finetuned)]
    if not any(previews):
        return
    base = previews[0] or open_checkpoint(zeroshot)
    others = [
        each or open_checkpoint(source, base=base)
        for each, source in zip(previews[1:], finetuned, strict=True)
    ]
    align_checkpoints(base, others, missing=missing, mixed_dtypes=mixed_dtypes)
