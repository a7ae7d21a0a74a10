"""Tokenizer files: whether they are CLIP's own, and CLIP's own made from the list that OpenCLIP brings along."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from clipmerge.errors import CheckpointError
from clipmerge.files.side_files import read_side_json

#: Files either of which is a tokenizer.
TOKENIZER = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
START, END = "<|startoftext|>", "<|endoftext|>"
# sha256 of CLIP's vocabulary, a token a line in the order of their ids
_CLIP_VOCABULARY = "7cccc44d334555d1ff3c0ac5f0246b428fab2918383e77ee745cf30d41010b78"
_MERGES = 49152 - 256 - 2


def is_clips_own(folder: Path) -> bool | None:
    """Say whether a folder's tokenizer has CLIP's vocabulary, the only one OpenCLIP needs no files for.

    Args:
        folder: Where the tokenizer's files are.

    Returns:
        ``None`` when there is no tokenizer.
    """
    if not any((folder / name).is_file() for name in TOKENIZER):
        return None
    vocabulary = _vocabulary(folder)
    return vocabulary is not None and _digest(vocabulary) == _CLIP_VOCABULARY


def _vocabulary(folder: Path) -> dict[str, int] | None:
    for name in ("vocab.json", "tokenizer.json"):
        try:
            data = read_side_json(folder, name)
            if data is None:
                continue
            found: dict[str, int] = data["model"]["vocab"] if name == "tokenizer.json" else data
            return {str(token): int(index) for token, index in found.items()}
        except (CheckpointError, ValueError, KeyError, TypeError, AttributeError):
            return None
    return None


def _digest(vocabulary: dict[str, int]) -> str:
    tokens = "\n".join(sorted(vocabulary, key=vocabulary.__getitem__))
    return hashlib.sha256(tokens.encode()).hexdigest()


def write_clip_tokenizer(folder: Path, context_length: int) -> None:
    """Write the tokenizer that OpenCLIP uses where its configuration names none, as transformers saves one.

    Args:
        folder: Where to.
        context_length: Tokens a text is cut at.

    Raises:
        CheckpointError: If open_clip_torch is not installed, or brings another list than CLIP's.
    """
    from transformers import CLIPTokenizer

    merges = _merges()
    letters = list(_byte_letters())
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), START, END]
    vocabulary = {word: index for index, word in enumerate(words)}
    if _digest(vocabulary) != _CLIP_VOCABULARY:
        raise CheckpointError(
            "the installed open_clip_torch brings another vocabulary than CLIP's; put the tokenizer's files beside the "
            "weights, or install another version of it"
        )
    tokenizer: Any = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context_length)
    tokenizer.save_pretrained(folder)


def _merges() -> list[tuple[str, str]]:
    """The merges of the list in the installed open_clip, which is not imported: that would take seconds."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise CheckpointError(
            "there is no tokenizer beside the weights, and it is made from open_clip_torch's list of words; install "
            "clipmerge[open-clip], or copy the tokenizer's files of openai/clip-vit-base-patch32 there"
        )
    file = Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        found = lines.read().split("\n")[1 : _MERGES + 1]
    pairs = [line.split() for line in found]
    return [(first, second) for first, second in pairs]


def _byte_letters() -> list[str]:
    """The letter that stands for each byte, printable ones first; the order gives the tokens their ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
