"""Captions of images: told from names of classes, and listed for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipmerge.errors import DataError, counted, is_utf8, shorten
from clipmerge.finding import Finding
from clipmerge.images.source import Source
from clipmerge.types import Names

# Texts are captions if their mean number of words is at least this and most of them differ.
_WORDS_OF_A_CAPTION = 3


def has_captions(source: Source) -> bool:
    """Whether images come with captions and not classes: as the source or the user says, or by the
    look of the values.
    """
    if source.captioned is not None:
        return source.captioned
    values = source.values or ()
    return any(map(_are_texts, values)) or (
        source.class_names is None and look_like_captions(values)
    )


def _are_texts(value: Any) -> bool:
    is_list = isinstance(value, list | tuple) and bool(value)
    return is_list and all(isinstance(text, str) for text in value)


def look_like_captions(labels: Sequence[Any]) -> bool:
    """Whether texts are captions and not names of classes: several words each, and most differ.

    Example:
        >>> look_like_captions(["a dog on a bed", "two cats at play", "an old oak"])
        True
        >>> look_like_captions(["dog", "cat", "oak tree"])
        False
    """
    if not labels or not all(isinstance(label, str) for label in labels):
        return False
    words = sum(len(label.split()) for label in labels)
    return words >= _WORDS_OF_A_CAPTION * len(labels) and 2 * len(set(labels)) > len(labels)


def caption_lines(text: str) -> list[str]:
    """The captions in a text file, one per line."""
    return [line for line in text.split("\n") if line.strip()]


def list_captions(source: Source) -> tuple[tuple[Names, ...], tuple[Finding, ...]]:
    """The captions of each image, a text or those of a list, and a note if some of several are
    empty.
    """
    captions: list[Names] = []
    left_out = 0
    name = source.store.name
    for position, value in enumerate(source.values or ()):
        texts = [value] if isinstance(value, str) else value
        texts = texts if isinstance(texts, list | tuple) else []
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{source.title}: {name(position)} has a caption that is not a text")
        captions.append(tuple(text.strip() for text in texts if text.strip()))
        left_out += len(texts) - len(captions[-1])
        if not all(map(is_utf8, captions[-1])):
            raise DataError(f"{source.title}: the caption of {name(position)} is not UTF-8")
    if not captions:
        raise DataError(f"{source.title}: holds no images")
    if empty := [position for position, texts in enumerate(captions) if not texts]:
        have = counted(len(empty), "image has", "images have")
        raise DataError(
            f"{source.title}: {have} no caption (of {len(captions)}):"
            f" {shorten(map(name, empty), 3)}; write one, or leave these images out"
        )
    note = Finding.of("empty-captions", source=source.title, captions=left_out)
    return tuple(captions), (note,) if left_out else ()
