"""Find a CLIP inside another model, and remove the prefixes of its keys."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from clipmerge.checkpoint.source import prefix_errors
from clipmerge.errors import CheckpointError, counted, shorten

T = TypeVar("T")
# The place in a key where a tower's own name begins.
_TOWERS = ("vision_model", "text_model", "visual")
_TOWER = re.compile(rf"(?:^|\.)(?=({'|'.join(_TOWERS)})\.)")
# Words that wrappers of modules add to keys: torch.compile, FSDP, activation checkpointing.
_WRAPPED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Counts and masks that OpenAI's archives, old versions of open_clip and averages of weights store
# beside the weights.
_NOT_WEIGHTS = re.compile(
    r"(?:module\.)*(?:input_resolution|context_length|vocab_size|(?:text\.)?attn_mask|n_averaged)"
)
_HEAD = "classification_head."
_TEXT_BLOCKS = ("transformer.", "text.")
# Parameters of OpenCLIP's image tower. If it is saved alone, their keys lack ``visual.``.
_LONE_TOWER = re.compile(r"class_embedding|attnpool\.positional_embedding|trunk\..*")
# Patterns of keys of incomplete weights, their description, and the remedy.
_INCOMPLETE = (
    (
        r"\.lora_(?:up|down|(?:embedding_)?[AB])\b",
        "factors of LoRA",
        "merge them where they were trained (peft: merge_and_unload()), or give the adapter's own"
        " folder",
    ),
    (
        r"\.parametrizations\.|\.weight_(?:g|v|orig)$|\.mlp\.[\w.]+\.(?:theta|r)$",
        "parts of weights in place of whole ones (weight normalisation, GmP)",
        "join them where the model was trained, with"
        " torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') or the converter of"
        " its repository",
    ),
    (
        r"\.(?:absmax|quant_map|SCB|qweight|qzeros|weight_packed|weight_scale|W_q)$|\.quant_state\.",
        "quantised weights",
        "give the model before quantisation, or save it dequantised"
        " (model.dequantize().save_pretrained(FOLDER))",
    ),
)


def unwrap(
    path: Path, tensors: Mapping[str, T], part: str | None, notes: list[str]
) -> dict[str, T]:
    """Select the tensors of the CLIP in a file, and remove the prefixes of their keys.

    Args:
        path: The file, for messages.
        tensors: Everything that the file holds, by key.
        part: The attribute that holds the CLIP, if the user named one.
        notes: A note is added about tensors that are left out.
    """
    with prefix_errors(path):
        names = {key: tensor for key, tensor in tensors.items() if not _NOT_WEIGHTS.fullmatch(key)}
        _refuse_incomplete(names)
        if part is not None:
            names = _take_part(names, part)
        names = {_WRAPPED.sub("", name): tensor for name, tensor in names.items()}
        prefixes = _prefixes_of(names)
    found: dict[str, T] = {}
    outside = []
    for name, tensor in names.items():
        before = [prefix for prefix in prefixes if name.startswith(prefix)]
        if before:
            found[name.removeprefix(before[0])] = tensor
        elif name.startswith(_HEAD):
            found[name] = tensor
        else:
            outside.append(name)
    if outside:
        under = " and ".join(prefix.removesuffix(".") for prefix in sorted(prefixes))
        left = counted(len(outside), "tensor is", "tensors are")
        notes.append(f"{path}: the CLIP is under {under}; {left} left out: {shorten(outside)}")
    if any(map(_LONE_TOWER.fullmatch, found)):
        return {f"visual.{name}": tensor for name, tensor in found.items()}
    has_head = any(name.startswith(_HEAD) for name in found)
    if has_head and not any(name.startswith(_TEXT_BLOCKS) for name in found):
        # WiSE-FT and model soups keep the embeddings of a text tower without its blocks
        return {name: found[name] for name in found if name.startswith(("visual.", _HEAD))}
    return found


def _refuse_incomplete(names: Iterable[str]) -> None:
    """Raise an error if a file stores weights as factors, parts or codes, which only the library
    that wrote it can join.
    """
    for pattern, description, remedy in _INCOMPLETE:
        found = [name for name in names if re.search(pattern, name)]
        if found:
            raise CheckpointError(f"holds {description} ({shorten(found, 2)}); {remedy}")


def _take_part(names: dict[str, T], part: str) -> dict[str, T]:
    """Select the tensors below an attribute, and remove its name from their keys."""
    start = f"{part}."
    found = {name.removeprefix(start): names[name] for name in names if name.startswith(start)}
    if not found:
        firsts = dict.fromkeys(name.partition(".")[0] for name in names)
        raise CheckpointError(
            f"holds nothing under '{part}'; its keys begin with {shorten(firsts)}"
        )
    return found


def _prefixes_of(names: Collection[str]) -> list[str]:
    """Find the prefixes of the towers' names, the longest first. If no tower is known, find the
    prefix of all names.
    """
    found = {(match[1], name[: match.end()]) for name in names if (match := _TOWER.search(name))}
    for tower in _TOWERS:
        starts = sorted(f"'{start.removesuffix('.')}'" for word, start in found if word == tower)
        if len(starts) > 1:
            raise CheckpointError(
                f"holds {len(starts)} models, each with a '{tower}', under {shorten(starts)};"
                " choose one with FILE#KEY"
            )
    prefixes = {start for _, start in found}
    return sorted(prefixes, key=len, reverse=True) or [_shared_prefix(names)]


def _shared_prefix(names: Collection[str]) -> str:
    """Return the path of modules with which all names begin."""
    shared = os.path.commonprefix([name.split(".")[:-1] for name in names])  # noqa: RUF071 - lists
    return "".join(f"{word}." for word in shared)
