"""Tokenizer files: recognise CLIP's own, and make CLIP's own from the list that comes with
OpenCLIP.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from clipmerge.errors import CheckpointError
from clipmerge.files.side_files import VOCABULARIES, read_side_json

START, END = "<|startoftext|>", "<|endoftext|>"
# sha256 of CLIP's vocabulary, one token per line in the order of their ids
_CLIP_VOCABULARY = "7cccc44d334555d1ff3c0ac5f0246b428fab2918383e77ee745cf30d41010b78"
_MERGES = 49152 - 256 - 2


def is_clips_own(folder: Path) -> bool | None:
    """Whether a folder's tokenizer has CLIP's vocabulary, for which OpenCLIP needs no files;
    ``None`` without one.
    """
    if not any((folder / name).is_file() for name in VOCABULARIES):
        return None
    try:
        vocabulary: Any = read_side_json(folder, "vocab.json")
        if vocabulary is None:
            tokenizer: Any = read_side_json(folder, "tokenizer.json")
            vocabulary = tokenizer["model"]["vocab"]
        return (
            _digest({str(token): int(index) for token, index in vocabulary.items()})
            == _CLIP_VOCABULARY
        )
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return False


def _digest(vocabulary: dict[str, int]) -> str:
    tokens = "\n".join(sorted(vocabulary, key=vocabulary.__getitem__))
    return hashlib.sha256(tokens.encode()).hexdigest()


def write_clip_tokenizer(folder: Path, context_length: int) -> None:
    """Write OpenCLIP's default tokenizer in transformers' format."""
    from transformers import CLIPTokenizer

    merges = _merges()
    # a letter for each byte, printable ones first; the order determines the tokens' ids
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    letters = [chr(byte) for byte in (*printable, *range(256, 512 - len(printable)))]
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), START, END]
    vocabulary = {word: index for index, word in enumerate(words)}
    if _digest(vocabulary) != _CLIP_VOCABULARY:
        raise CheckpointError(
            "the installed open_clip_torch has a vocabulary other than CLIP's; put the tokenizer's"
            " files beside the weights, or install another version of it"
        )
    tokenizer: Any = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context_length)
    tokenizer.save_pretrained(folder)


def _merges() -> list[tuple[str, str]]:
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
