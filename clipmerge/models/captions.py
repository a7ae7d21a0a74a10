"""A check of captions before a model reads them: whether they fit."""

from __future__ import annotations

from collections.abc import Sequence

from clipmerge.models import ImageTextModel
from clipmerge.types import Names

# Captions that are tokenised at once: a megabyte of tokens.
_TEXTS_AT_ONCE = 1024


def caption_notes(source: str, model: ImageTextModel, captions: Sequence[str]) -> Names:
    """Note how many captions are cut off, if any are."""
    cut = 0
    length = 0
    for start in range(0, len(captions), _TEXTS_AT_ONCE):
        part = list(captions[start : start + _TEXTS_AT_ONCE])
        longer = [f"{text} x" for text in part]
        rows = model.tokens([*part, *longer])["input_ids"]  # padded to one length
        length = rows.shape[1]
        full = (rows[: len(part)] == rows[len(part) :]).all(dim=1)
        cut += int(full.sum())
    if not cut:
        return ()
    return (
        f"{source}: {cut} of {len(captions)} captions are as long as the {length} tokens that the"
        " model reads, or longer; their ends are cut off",
    )
