"""The files beside the weights (configuration, processor, tokenizer), copied so that the output can
be loaded.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

from clipmerge.checkpoint import Checkpoint, Inputs
from clipmerge.checkpoint.converted import ConvertedCheckpoint
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG
from clipmerge.conversion.keys import layout_of
from clipmerge.errors import shorten
from clipmerge.files.hashes import sha256_of
from clipmerge.files.safetensors import DTYPES
from clipmerge.files.side_files import (
    PROCESSORS,
    SIDE_FILES,
    VOCABULARIES,
    copy_side_file,
)
from clipmerge.types import Names

_TOKENIZER = (
    *VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_DTYPE_KEYS = ("dtype", "torch_dtype")


def write_side_files(folder: Path, inputs: Inputs, dtype: str) -> tuple[dict[str, str], list[str]]:
    """Copy configuration, processor and tokenizer, so that the output can be loaded like its
    sources.

    They are those of the fine-tuned checkpoint, unchanged except for the config's dtype. Files that
    it lacks, and all files if it is one tower of a full model, are the zero-shot checkpoint's. A
    classifier needs no tokenizer.

    Returns:
        sha256 by name of each file written, and notes for the user.
    """
    source = inputs.layout
    notes = []
    if source.config is None:
        source = inputs.zeroshot
        if _side_files(source):
            notes.append(
                f"the fine-tuned checkpoint has no {inputs.family.config}; the zero-shot one's side"
                " files were copied"
            )
    chosen = _side_files(source)
    if source is not inputs.zeroshot and not isinstance(inputs.zeroshot, ConvertedCheckpoint):
        others = _side_files(inputs.zeroshot)
        for part, (needed, names) in _parts(inputs).items():
            if others.keys() & needed and not chosen.keys() & needed:
                chosen = {name: others[name] for name in names if name in others} | chosen
                notes.append(
                    f"the fine-tuned checkpoint has no {part}; the zero-shot one's was copied"
                )
    hashes = {}
    for name, path in sorted(chosen.items()):
        copy_side_file(path, folder / name)
        if name == "config.json":
            _correct_dtype(folder / name, source, dtype)
        hashes[name] = sha256_of(folder / name)
    return hashes, notes + _not_copied(source)


def _parts(inputs: Inputs) -> dict[str, tuple[set[str], Names]]:
    """The parts that a model needs beside its weights: files of which it has one, and all files."""
    parts: dict[str, tuple[set[str], Names]] = {}
    if layout_of(inputs.zeroshot.entries) != "open-clip":  # whose config holds the preprocessing
        parts["processor"] = (set(PROCESSORS), PROCESSORS)
    if not inputs.keeps_head:
        parts["tokenizer"] = (set(VOCABULARIES), _TOKENIZER)
    return parts


def _side_files(checkpoint: Checkpoint) -> dict[str, Path]:
    if checkpoint.config is None:  # whatever lies beside a bare file
        return {}
    # a folder may hold both layouts; files of the other layout do not describe the output
    strange = "config.json" if layout_of(checkpoint.entries) == "open-clip" else OPEN_CLIP_CONFIG
    names = sorted(SIDE_FILES - {strange})
    return {
        name: checkpoint.folder / name for name in names if (checkpoint.folder / name).is_file()
    }


def _not_copied(checkpoint: Checkpoint) -> list[str]:
    """A note of texts beside the weights that no loader is known to read."""
    if checkpoint.config is None:
        return []
    strange = [
        path.name
        for path in sorted(checkpoint.folder.iterdir())
        if path.suffix in (".json", ".txt", ".model", ".jinja")
        and path.name not in SIDE_FILES
        and not path.name.startswith(".")
        and not path.name.endswith((".index.json", "_results.json", "_state.json"))
        and path.name != "clipmerge.json"
    ]
    if not strange:
        return []
    return [
        f"{checkpoint.source}: {shorten(strange)} not copied: not among the files that loaders read"
    ]


def _correct_dtype(path: Path, checkpoint: Checkpoint, dtype: str) -> None:
    """State the dtype of the weights in a config, because transformers follows it, not the file."""
    floats = {DTYPES[entry.dtype][0] for entry in checkpoint.entries.values() if entry.is_float}
    if dtype != "keep":
        floats = {dtype}
    if len(floats) != 1:
        return
    (actual,) = floats
    config = json.loads(path.read_text(encoding="utf-8-sig"))
    stated = deepcopy(config)
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        section.update({key: actual for key in _DTYPE_KEYS if section.get(key) is not None})
    if all(config.get(key) is None for key in _DTYPE_KEYS) and actual != "float32":
        config["dtype"] = actual
    if config != stated:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
