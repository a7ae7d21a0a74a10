"""What can be told of captions before a model reads them: whether they fit, and whether its
tokenizer knows their words.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipmerge.models import ImageTextModel
from clipmerge.types import Names

_MAX_UNKNOWN_SHARE = 0.1
_TEXTS_AT_ONCE = 1024


def caption_notes(source: str, model: ImageTextModel, captions: Sequence[str]) -> Names:
    """Notes on captions that are cut off, and on those whose words the tokenizer does not know."""
    cut = unknown = total = length = 0
    for start in range(0, len(captions), _TEXTS_AT_ONCE):
        part = list(captions[start : start + _TEXTS_AT_ONCE])
        # padded to one length, and the last row ends in padding
        rows = model.tokens([*part, *(f"{text} x" for text in part), ""])["input_ids"]
        ids, extended, length = rows[: len(part)], rows[len(part) : -1], rows.shape[1]
        full = (ids == extended).all(dim=1)
        cut += int(full.sum())
        total += int((ids != rows[-1, -1])[~full].sum())
        # of some tokenizers it is the token that ends every text
        if model.unknown_token is not None and not (rows[-1] == model.unknown_token).any():
            unknown += int((ids == model.unknown_token).sum())
    notes = []
    if cut:
        notes.append(
            f"{source}: {cut} of {len(captions)} captions are as long as the {length} tokens that"
            " the model reads, or longer; what is beyond is cut off"
        )
    if unknown > _MAX_UNKNOWN_SHARE * total:
        notes.append(
            f"{source}: {unknown / max(total, 1):.0%} of the captions' tokens are unknown to the"
            " model's tokenizer; are they in a language that the model knows?"
        )
    return tuple(notes)
