"""A note counts captions that CLIP's tokenizer cuts off."""

from unittest.mock import Mock

import pytest
from open_clip import SimpleTokenizer

from clipmerge.models.captions import caption_notes

LONG = " ".join(["a red leather boot"] * 30)


@pytest.mark.parametrize(
    ("length", "captions", "told"),
    [
        (77, ["a red leather boot", "XJ-900 shelf, oak, 80 x 200 cm"], ""),
        (77, ["a boot", LONG, LONG], "shop: 2 of 3 captions are as long as the 77 tokens"),
        # of eight tokens two are the start and the end, so six words are the most
        (8, ["one two three four five"], ""),
        (8, ["one two three four five six"], "1 of 1 captions"),
    ],
)
def test_captions_that_are_cut_off_are_counted(length: int, captions: list[str], told: str) -> None:
    tokenizer = SimpleTokenizer(context_length=length)
    model = Mock(tokens=lambda prompts: {"input_ids": tokenizer(prompts)})
    assert told in "".join(caption_notes("shop", model, captions))
    assert bool(told) == bool(caption_notes("shop", model, captions))
