"""What can be told of captions before a model reads them: whether they fit, and whether its
tokenizer knows their language.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipmerge.finding import Finding
from clipmerge.models import ImageTextModel

# A tokenizer takes about 0.25 tokens for a byte of its own languages, and near to one for every
# letter or byte of others.
_MAX_TOKENS_PER_BYTE = 0.45
_MAX_UNKNOWN_SHARE = 0.1
_TEXTS_AT_ONCE = 1024


def caption_notes(source: str, model: ImageTextModel, captions: Sequence[str]) -> list[Finding]:
    """Notes on captions that are cut off, and on those in a language that the tokenizer hardly
    knows.
    """
    cut = unknown = total = bytes_read = length = 0
    for start in range(0, len(captions), _TEXTS_AT_ONCE):
        part = captions[start : start + _TEXTS_AT_ONCE]
        longer = [f"{text} x" for text in part]
        # padded to one length, and the last row ends in padding
        rows = model.tokens([*part, *longer, ""])["input_ids"]
        ids = rows[: len(part)]
        extended = rows[len(part) : -1]
        padding = rows[-1, -1]
        full = (ids == extended).all(dim=1)
        cut += int(full.sum())
        length = max(length, ids.shape[1])
        real = ids != padding
        total += int(real[~full].sum())
        bytes_read += sum(
            len(text.encode())
            for text, is_full in zip(part, full.tolist(), strict=True)
            if not is_full
        )
        # of some tokenizers it is the token that ends every text
        if model.unknown_token is not None and not (rows[-1] == model.unknown_token).any():
            unknown += int((ids == model.unknown_token).sum())
    notes = []
    if cut:
        notes.append(
            Finding.of(
                "captions-cut", source=source, captions=cut, total=len(captions), tokens=length
            )
        )
    if unknown > _MAX_UNKNOWN_SHARE * total:
        notes.append(Finding.of("unknown-tokens", source=source, share=unknown / max(total, 1)))
    elif total > _MAX_TOKENS_PER_BYTE * bytes_read:
        rate = total / max(bytes_read, 1)
        notes.append(Finding.of("spelled-captions", source=source, tokens_per_byte=rate))
    return notes
