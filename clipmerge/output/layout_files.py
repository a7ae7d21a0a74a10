"""Files beside the weights for the other library: configuration, preprocessing, tokenizer."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

from clipmerge.checkpoint import Checkpoint
from clipmerge.checkpoint.converted import ConvertedCheckpoint
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG, prefix_errors
from clipmerge.conversion.config import image_processor_config, preprocess_cfg
from clipmerge.errors import CheckpointError
from clipmerge.files.safetensors import DTYPES
from clipmerge.files.side_files import (
    LICENCE_FILES,
    TOKENIZER_FILES,
    VOCABULARIES,
    copy_side_file,
    read_image_processor,
    read_vocabulary,
    require_inside,
)
from clipmerge.finding import Finding
from clipmerge.types import Json

# size of the vocabulary of OpenCLIP's own tokenizer
_CLIP_WORDS = 49408


def write_layout_files(folder: Path, converted: ConvertedCheckpoint, dtype: str) -> list[Finding]:
    """Write the files that the other library needs beside the weights; return notes for the
    user.
    """
    original = converted.original
    config = converted.config or {}
    notes: list[Finding] = []
    with prefix_errors(converted.source):
        try:
            if "model_cfg" in config:
                notes = _write_open_clip_files(folder, original, config)
            else:
                _write_transformers_files(folder, original, config, dtype)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"its preprocessing cannot be understood ({reason})") from None
    _copy_side_files(folder, original.folder, LICENCE_FILES)
    return notes


def _write_transformers_files(
    folder: Path, checkpoint: Checkpoint, config: Json, dtype: str
) -> None:
    """Write ``config.json``, ``preprocessor_config.json`` and the tokenizer."""
    ours = checkpoint.config or {}
    if actual := dtype_of(checkpoint, dtype):
        config = {**config, "dtype": actual}
    _write_json(folder / "config.json", config)
    size = config["vision_config"]["image_size"]
    _write_json(
        folder / "preprocessor_config.json",
        image_processor_config(ours.get("preprocess_cfg") or {}, size),
    )
    text = ours.get("model_cfg", ours).get("text_cfg") or {}
    is_own = has_clip_vocabulary(checkpoint.folder)
    if text.get("hf_tokenizer_name") and is_own is None:
        raise CheckpointError(
            f"its tokenizer is that of {text['hf_tokenizer_name']}; copy the tokenizer's files"
            " beside the weights first"
        )
    if is_own or text.get("hf_tokenizer_name"):
        _copy_side_files(folder, checkpoint.folder, TOKENIZER_FILES)
        return
    words = config["text_config"]["vocab_size"]
    if words != _CLIP_WORDS:
        raise CheckpointError(
            f"its text tower has {words} tokens, but open_clip_config.json names no tokenizer; set "
            "text_cfg.hf_tokenizer_name and copy the tokenizer's files beside the weights"
        )
    write_clip_tokenizer(folder, config["text_config"]["max_position_embeddings"])


def _write_open_clip_files(folder: Path, checkpoint: Checkpoint, config: Json) -> list[Finding]:
    """Write ``open_clip_config.json`` and copy the tokenizer; return notes for the user."""
    model_cfg = deepcopy(config["model_cfg"])
    name = checkpoint.folder.resolve().name
    processor = read_image_processor(checkpoint.folder)
    notes = []
    if processor is None:
        notes.append(Finding.of("no-preprocessing", source=checkpoint.source))
    preprocess, preprocessing_notes = preprocess_cfg(
        processor or {}, model_cfg["vision_cfg"]["image_size"]
    )
    is_own = has_clip_vocabulary(checkpoint.folder)
    if is_own is None and model_cfg["text_cfg"]["vocab_size"] != _CLIP_WORDS:
        notes.append(Finding.of("no-tokenizer", source=checkpoint.source))
    if is_own is False:
        # from a folder OpenCLIP reads the files regardless of the name; on the Hub it must be the
        # repository's
        model_cfg["text_cfg"]["hf_tokenizer_name"] = name
        notes.append(Finding.of("own-tokenizer", name=name))
    if is_own is not None:
        _copy_side_files(folder, checkpoint.folder, TOKENIZER_FILES)
    _write_json(folder / OPEN_CLIP_CONFIG, {"model_cfg": model_cfg, "preprocess_cfg": preprocess})
    return notes + preprocessing_notes


def dtype_of(checkpoint: Checkpoint, asked: str) -> str | None:
    """The dtype that a configuration states for the weights; ``None`` if they have several."""
    floats = {DTYPES[entry.dtype][0] for entry in checkpoint.entries.values() if entry.is_float}
    return asked if asked != "keep" else floats.pop() if len(floats) == 1 else None


def _copy_side_files(folder: Path, source: Path, names: Iterable[str]) -> None:
    for name in names:
        file = require_inside(source, name)
        if file is not None:
            copy_side_file(file, folder / name)


def _write_json(path: Path, data: Json) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


# CLIP's own tokenizer: recognised, or made from the list that comes with OpenCLIP.
START, END = "<|startoftext|>", "<|endoftext|>"
# sha256 of CLIP's vocabulary, one token per line in the order of their ids
_CLIP_VOCABULARY = "7cccc44d334555d1ff3c0ac5f0246b428fab2918383e77ee745cf30d41010b78"
_MERGES = 49152 - 256 - 2


def has_clip_vocabulary(folder: Path) -> bool | None:
    """Whether a folder's tokenizer has CLIP's vocabulary, for which OpenCLIP needs no files;
    ``None`` without one.
    """
    if not any((folder / name).is_file() for name in VOCABULARIES):
        return None
    vocabulary = read_vocabulary(folder)
    return vocabulary is not None and _vocabulary_digest(vocabulary) == _CLIP_VOCABULARY


def _vocabulary_digest(vocabulary: dict[str, int]) -> str:
    tokens = "\n".join(sorted(vocabulary, key=vocabulary.__getitem__))
    return hashlib.sha256(tokens.encode()).hexdigest()


def write_clip_tokenizer(folder: Path, context_length: int) -> None:
    """Write OpenCLIP's default tokenizer in transformers' format."""
    from transformers import CLIPTokenizer

    merges = _read_bpe_merges()
    # a letter for each byte, printable ones first; the order determines the tokens' ids
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    letters = [chr(byte) for byte in (*printable, *range(256, 512 - len(printable)))]
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), START, END]
    vocabulary = {word: index for index, word in enumerate(words)}
    if _vocabulary_digest(vocabulary) != _CLIP_VOCABULARY:
        raise CheckpointError(
            "the installed open_clip_torch has a vocabulary other than CLIP's; put the tokenizer's"
            " files beside the weights, or install another version of it"
        )
    tokenizer: Any = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context_length)
    tokenizer.save_pretrained(folder)


def _read_bpe_merges() -> list[tuple[str, str]]:
    """The BPE merges in the list of the installed open_clip, which is not imported because that
    takes seconds.
    """
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise CheckpointError(
            "there is no tokenizer beside the weights, and making it needs open_clip_torch's list"
            " of words; install clipmerge[open-clip], or copy the tokenizer's files of"
            " openai/clip-vit-base-patch32 there"
        )
    file = Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = lines.read().split("\n")[1 : _MERGES + 1]
    return [(first, second) for first, second in map(str.split, rows)]
