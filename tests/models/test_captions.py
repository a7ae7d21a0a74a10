"""What is said of captions before a model reads them, with CLIP's own tokenizer and with one of
words."""

from typing import cast

import torch
from open_clip import SimpleTokenizer

from clipmerge.models import ImageTextModel
from clipmerge.models.captions import caption_notes

ENGLISH = [
    "a red leather boot with a low heel",
    "chest radiograph, no acute finding.",
    "XJ-900 shelf, oak, 80 x 200 cm",
]


class Clip:
    """A model that reads captions as OpenAI's CLIP does."""

    def __init__(self, length: int = 77) -> None:
        self.tokenizer = SimpleTokenizer(context_length=length)

    def tokens(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokenizer(prompts)}


def notes_of(model: object, captions: list[str]) -> list[str]:
    return [*caption_notes("shop", cast("ImageTextModel", model), captions)]


def test_nothing_is_said_of_captions_that_fit() -> None:
    assert notes_of(Clip(), ENGLISH) == []


def test_captions_that_are_cut_off_are_counted() -> None:
    long = " ".join(["a red leather boot"] * 30)
    (note,) = notes_of(Clip(), [*ENGLISH, long, long])
    assert note.startswith("shop: 2 of 5 captions are as long as the 77 tokens")
    # of eight tokens two are the start and the end, so six words are the most
    assert notes_of(Clip(8), ["one two three four five"]) == []
    assert "1 of 1 captions" in notes_of(Clip(8), ["one two three four five six"])[0]
