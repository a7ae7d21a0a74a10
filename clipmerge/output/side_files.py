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
from clipmerge.files.hashes import sha256_of
from clipmerge.files.safetensors import DTYPES
from clipmerge.files.side_files import (
    PROCESSORS,
    SIDE_FILES,
    VOCABULARIES,
    copy_side_file,
)
from clipmerge.finding import Finding
from clipmerge.types import Names

_TEXTS = (".json", ".txt", ".model", ".jinja")
# Files left by training and by clipmerge itself, which nobody expects in the output.
_NEVER_SIDE = (
    "clipmerge.json",
    "conversion.json",
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
)
_DTYPE_KEYS = ("dtype", "torch_dtype")


def write_side_files(
    folder: Path, inputs: Inputs, dtype: str
) -> tuple[dict[str, str], list[Finding]]:
    """Copy configuration, processor and tokenizer, so that the output can be loaded like its
    sources.

    They are those of the fine-tuned checkpoint, unchanged except for the config's dtype. Files that
    it lacks, and all files if it is one tower of a full model, are the zero-shot checkpoint's. A
    classifier needs no tokenizer.
    """
    before = set(folder.iterdir())
    notes = _copy_side_files(folder, inputs, dtype)
    return {
        path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path not in before
    }, notes


def _copy_side_files(folder: Path, inputs: Inputs, dtype: str) -> list[Finding]:
    """Write the files, and return notes for the user."""
    form = inputs.layout
    if form.config is None:
        form = inputs.zeroshot
    chosen = _side_files(form)
    notes = list[Finding]()
    if chosen and form is inputs.zeroshot and not inputs.takes_zeroshot_layout:
        notes.append(Finding.of("side-files-copied", config=inputs.family.config))
    for part, names in _parts_to_lend(inputs).items():
        if form is not inputs.zeroshot and not any(name in chosen for name in names):
            lent = {
                name: path
                for name, path in _side_files(inputs.zeroshot).items()
                if name not in chosen
            }
            other = VOCABULARIES if names is PROCESSORS else PROCESSORS
            lent = {
                name: path for name, path in lent.items() if name not in ("config.json", *other)
            }
            if any(name in lent for name in names):
                chosen |= lent
                notes.append(Finding.of("part-copied", part=part))
    for name, path in sorted(chosen.items()):
        copy_side_file(path, folder / name)
        if name == "config.json":
            _correct_dtype(folder / name, form, dtype)
    return [*notes, *_not_copied(form)]


def _parts_to_lend(inputs: Inputs) -> dict[str, Names]:
    """List the parts, with their files, that the zero-shot checkpoint has for a fine-tuned one
    without them.
    """
    if isinstance(inputs.zeroshot, ConvertedCheckpoint) or inputs.family.name == "timm":
        return {}  # they are for another library
    parts: dict[str, Names] = {}
    if layout_of(inputs.zeroshot.entries) != "open-clip":
        parts["processor"] = PROCESSORS
    # a classifier needs none
    return parts if inputs.keeps_head else {**parts, "tokenizer": VOCABULARIES}


def _side_files(checkpoint: Checkpoint) -> dict[str, Path]:
    if checkpoint.config is None:
        return {}
    # a folder may hold both layouts; files of the other layout do not describe the output
    strange = "config.json" if layout_of(checkpoint.entries) == "open-clip" else OPEN_CLIP_CONFIG
    names = sorted(SIDE_FILES - {strange})
    return {
        name: checkpoint.folder / name for name in names if (checkpoint.folder / name).is_file()
    }


def _not_copied(checkpoint: Checkpoint) -> list[Finding]:
    """Note files beside the weights that seem to belong to them but are not copied.

    A bare file of weights may lie in any folder, whose other files are nobody's concern.
    """
    if checkpoint.config is None:
        return []
    names = sorted(path.name for path in checkpoint.folder.iterdir())
    names = [name for name in names if not name.startswith((".", *_NEVER_SIDE))]
    strange = [name for name in names if name.endswith(_TEXTS) and name not in SIDE_FILES]
    strange = [name for name in strange if not name.endswith(".index.json")]
    if not strange:
        return []
    return [Finding.of("not-copied", source=checkpoint.source, files=strange, reason="not-read")]


def dtype_of(checkpoint: Checkpoint, asked: str) -> str | None:
    """The dtype that a configuration states for the weights; ``None`` if they have several."""
    floats = {DTYPES[entry.dtype][0] for entry in checkpoint.entries.values() if entry.is_float}
    return asked if asked != "keep" else floats.pop() if len(floats) == 1 else None


def _correct_dtype(path: Path, form: Checkpoint, dtype: str) -> None:
    """State the dtype of the weights in a config, because transformers follows it, not the file."""
    config = json.loads(path.read_text(encoding="utf-8-sig"))
    stated = deepcopy(config)
    actual = dtype_of(form, dtype)
    if actual is None:
        return
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        section.update({key: actual for key in _DTYPE_KEYS if section.get(key) is not None})
    if all(config.get(key) is None for key in _DTYPE_KEYS) and actual != "float32":
        config["dtype"] = actual
    if config != stated:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
