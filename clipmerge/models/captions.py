"""Check that captions fit into a model's text length."""

from __future__ import annotations

from collections.abc import Sequence

from clipmerge.models import ImageTextModel
from clipmerge.types import Names


def caption_notes(source: str, model: ImageTextModel, captions: Sequence[str]) -> Names:
    """Note the number of captions that are cut off, if any are."""
    longer = [f"{text} x" for text in captions]
    # padded to one length
    rows, longer_rows = model.tokens([*captions, *longer])["input_ids"].chunk(2)
    cut = int((rows == longer_rows).all(dim=1).sum())
    if not cut:
        return ()
    return (
        f"{source}: {cut} of {len(captions)} captions are as long as the {rows.shape[1]} tokens"
        " that the model reads, or longer; their ends are cut off",
    )
