"""Find the CLIP among the keys of a file: below the prefixes that wrappers and users' own modules
put before its towers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from clipmerge.errors import CheckpointError, counted, shorten

# Where a tower's part of a key begins, after whatever comes before it.
_TOWER = re.compile(r"(?:^|\.)(?=(vision_model|text_model|visual)\.)")
# Put into keys by wrappers of single modules: torch.compile, FSDP, checkpoints of activations.
_WRAPPED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Counts and masks that OpenAI's archives, old versions of open_clip and averages of weights keep
# beside the weights.
_NOT_WEIGHTS = re.compile(
    r"(?:module\.)*(?:input_resolution|context_length|vocab_size|(?:text\.)?attn_mask|n_averaged)"
)
_HEAD = "classification_head."
# Parameters of an image tower of OpenCLIP that was saved by itself, without ``visual.``.
_LONE_TOWER = re.compile(r"class_embedding|attnpool\.positional_embedding|trunk\..*")
# Marks of weights that are not whole, with what they are and what to do.
_NOT_WHOLE = (
    (
        r"\.lora_(?:up|down|(?:embedding_)?[AB])\b",
        "factors of LoRA",
        "merge them where they were trained (peft: merge_and_unload()), or give the adapter's own"
        " folder",
    ),
    (
        r"\.parametrizations\.|\.weight_(?:g|v|orig)$|\.mlp\.[\w.]+\.(?:theta|r)$",
        "parts of weights in place of the weights (weight normalisation, GmP)",
        "form them where it was trained: torch.nn.utils.parametrize.remove_parametrizations(module,"
        " 'weight'), or the converter of its repository",
    ),
    (
        r"\.(?:absmax|quant_map|SCB|qweight|qzeros|weight_packed|weight_scale|W_q)$|\.quant_state\.",
        "quantised weights",
        "give the checkpoint that it was made from, or save it dequantised"
        " (model.dequantize().save_pretrained(FOLDER))",
    ),
)


def unwrap(keys: Iterable[str], part: str | None = None) -> tuple[dict[str, str], str | None]:
    """Keys of the file by the CLIP's own names, or by the names under the attribute ``part``; and a
    note about what is left out, if anything is.
    """
    file_keys = [key for key in keys if not _NOT_WEIGHTS.fullmatch(key)]
    for mark, what, way_out in _NOT_WHOLE:
        if marked := [key for key in file_keys if re.search(mark, key)]:
            raise CheckpointError(f"holds {what} ({shorten(marked, 2)}); {way_out}")
    names = {key: key for key in file_keys}
    if part is not None:
        start = f"{part}."
        names = {key.removeprefix(start): key for key in file_keys if key.startswith(start)}
        if not names:
            firsts = shorten(dict.fromkeys(key.partition(".")[0] for key in file_keys))
            raise CheckpointError(f"holds nothing under '{part}'; its keys begin with {firsts}")
    names = _without_wrappers(names)
    prefixes = _prefixes_of(names)
    found: dict[str, str] = {}
    outside = []
    for name, key in names.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is not None or name.startswith(_HEAD):
            found[name.removeprefix(prefix or "")] = key
        else:
            outside.append(name)
    if any(name.startswith(_HEAD) for name in found) and not any(
        name.startswith(("transformer.", "text.")) for name in found
    ):  # of WiSE-FT's and model soups' classifiers, with remains of the text tower
        found = {name: found[name] for name in found if name.startswith(("visual.", _HEAD))}
    if not outside:
        return found, None
    under = " and ".join(prefix.removesuffix(".") for prefix in sorted(prefixes))
    tensors = counted(len(outside), "tensor", "tensors")
    return found, f"the CLIP is what lies under {under}; {tensors} left out: {shorten(outside)}"


def _without_wrappers(names: dict[str, str]) -> dict[str, str]:
    """The keys by names without wrappers of PyTorch, unless two would have one name; and without
    what all share, if there is no tower by a known name.
    """
    plain = {_WRAPPED.sub("", name): key for name, key in names.items()}
    plain = plain if len(plain) == len(names) else names
    if any(map(_TOWER.search, plain)):
        return plain
    modules = [name.split(".")[:-1] for name in plain]
    columns = itertools.takewhile(lambda words: len(set(words)) == 1, zip(*modules, strict=False))
    shared = [words[0] for words in columns] if len(modules) > 1 else []
    plain = {name.removeprefix(".".join([*shared, ""])): key for name, key in plain.items()}
    if any(map(_LONE_TOWER.fullmatch, plain)):
        return {f"visual.{name}": key for name, key in plain.items()}
    return plain


def _prefixes_of(names: Iterable[str]) -> list[str]:
    """What stands before the towers' names, the longest first; one empty prefix if there is no
    tower by a known name.
    """
    prefixes: dict[str, dict[str, None]] = {}  # by tower, in the file's order
    for match in filter(None, map(_TOWER.search, names)):
        prefixes.setdefault(match[1], {})[match.string[: match.end()]] = None
    for tower, starts in prefixes.items():
        if len(starts) > 1:
            under = shorten(f"'{start.removesuffix('.')}'" for start in starts)
            raise CheckpointError(
                f"holds {len(starts)} models, each with a '{tower}', under {under}; name the one"
                " that you mean: FILE#KEY"
            )
    found = {start for starts in prefixes.values() for start in starts}
    return sorted(found, key=len, reverse=True) or [""]
