"""Vocabularies in each of the files that hold one, compared word by word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipmerge.checkpoint.vocabulary import vocabulary_difference

WORDS = [f"word{number}" for number in range(100)]


def write(folder: Path, kind: str, words: list[str]) -> Path:
    numbers = {word: number for number, word in enumerate(words)}
    text = {
        "tokenizer.json": json.dumps({"model": {"vocab": numbers}}),
        "vocab.json": json.dumps(numbers),
        "vocab.txt": "\n".join(words),
    }[kind]
    folder.mkdir()
    (folder / kind).write_text(text)
    return folder


KINDS = ["tokenizer.json", "vocab.json", "vocab.txt"]


@pytest.mark.parametrize("ours", KINDS)
@pytest.mark.parametrize("theirs", KINDS)
def test_words_are_compared_whatever_file_holds_them(tmp_path: Path, ours: str, theirs: str) -> None:
    one = write(tmp_path / "one", ours, WORDS)
    assert vocabulary_difference(one, write(tmp_path / "same", theirs, WORDS)) == ""
    other = write(tmp_path / "other", theirs, [WORDS[1], WORDS[0], *WORDS[2:]])
    assert vocabulary_difference(one, other).startswith("2 of 100 words of its vocabulary have another number")


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_that_cannot_be_read_is_no_evidence(tmp_path: Path, kind: str) -> None:
    one = write(tmp_path / "one", kind, WORDS)
    other = write(tmp_path / "other", kind, WORDS[::-1])
    (other / kind).write_bytes(b"\xff{")
    assert vocabulary_difference(one, other) == ""


@pytest.mark.parametrize("text", ["[]", '{"a": 1e999}', '{"a": null}'])
def test_a_vocabulary_of_another_shape_is_no_evidence(tmp_path: Path, text: str) -> None:
    one = write(tmp_path / "one", "vocab.json", WORDS)
    other = write(tmp_path / "other", "vocab.json", WORDS[::-1])
    (other / "vocab.json").write_text(text, encoding="utf-8")
    assert vocabulary_difference(one, other) == ""
