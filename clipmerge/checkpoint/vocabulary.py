"""Vocabularies of two checkpoints' tokenizers, compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipmerge.files.limits import LARGEST_JSON, MOST_VALUES
from clipmerge.files.reading import Unreadable, parse_json, read_text
from clipmerge.files.side_files import inside

# If this share of words has another number, two vocabularies differ; a few added tokens do not count.
_OTHER = 0.01


def vocabulary_difference(zeroshot: Path, finetuned: Path) -> str:
    """Describe the difference between two folders' vocabularies.

    Args:
        zeroshot: Folder of theta_0's side files.
        finetuned: Folder of theta_1's.

    Returns:
        One clause; empty if they agree, or one of them has none that can be read.
    """
    if zeroshot == finetuned:
        return ""
    ours, theirs = _vocabulary(zeroshot), _vocabulary(finetuned)
    if not ours or not theirs:
        return ""
    other = sum(theirs.get(word) != number for word, number in ours.items())
    if other <= _OTHER * len(ours):
        return ""
    return f"{other} of {len(ours)} words of its vocabulary have another number, or none, in that of the fine-tuned one"


def _vocabulary(folder: Path) -> dict[str, int]:
    """Numbers by word; empty if there is no vocabulary, or it cannot be read."""
    for name, read in _READERS.items():
        file = inside(folder, name)
        if file is None:
            continue
        try:
            return read(read_text(file, LARGEST_JSON, encoding="utf-8"))
        except (Unreadable, UnicodeError, LookupError, TypeError, ValueError, OverflowError):
            return {}
    return {}


def _of_tokenizer(text: str) -> dict[str, int]:
    words: Any = parse_json(text)["model"]["vocab"]
    # a unigram model lists pairs of word and score
    return _numbers(words if isinstance(words, dict) else {entry[0]: number for number, entry in enumerate(words)})


def _of_json(text: str) -> dict[str, int]:
    return _numbers(parse_json(text))


def _of_lines(text: str) -> dict[str, int]:
    if text.count("\n") > MOST_VALUES:  # each word becomes an object
        return {}
    return {word: number for number, word in enumerate(text.split("\n"))}


def _numbers(words: Any) -> dict[str, int]:
    if not isinstance(words, dict):
        raise TypeError("a vocabulary is a table of words and numbers")
    return {str(word): int(number) for word, number in words.items()}


_READERS: dict[str, Callable[[str], dict[str, int]]] = {
    "tokenizer.json": _of_tokenizer,
    "vocab.json": _of_json,
    "vocab.txt": _of_lines,
}
