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
CHINESE = ["红色的低跟皮靴", "胸部X光片未见急性异常", "橡木书架"]


class Clip:
    """A model that reads captions as OpenAI's CLIP does."""

    unknown_token = None

    def __init__(self, length: int = 77) -> None:
        self.tokenizer = SimpleTokenizer(context_length=length)

    def tokens(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokenizer(prompts)}


class Words:
    """A model whose tokenizer knows a few words, and ends every text with the token 1."""

    def __init__(self, unknown_token: int) -> None:
        self.unknown_token = unknown_token

    def tokens(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        known = {"a": 3, "red": 4, "boot": 5}
        rows = [
            [known.get(word, self.unknown_token) for word in text.split()] + [1] for text in prompts
        ]
        longest = max(map(len, rows))
        return {"input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows])}


def notes_of(model: object, captions: list[str]) -> list[str]:
    return [*caption_notes("shop", cast("ImageTextModel", model), captions)]


def test_nothing_is_said_of_captions_that_fit() -> None:
    assert notes_of(Clip(), ENGLISH) == []
    assert notes_of(Words(2), ["a red boot", "a boot"]) == []


def test_captions_that_are_cut_off_are_counted() -> None:
    long = " ".join(["a red leather boot"] * 30)
    (note,) = notes_of(Clip(), [*ENGLISH, long, long])
    assert note.startswith("shop: 2 of 5 captions are as long as the 77 tokens")
    # of eight tokens two are the start and the end, so six words are the most
    assert notes_of(Clip(8), ["one two three four five"]) == []
    assert "1 of 1 captions" in notes_of(Clip(8), ["one two three four five six"])[0]


def test_words_that_the_tokenizer_does_not_know_are_told() -> None:
    assert "50% of the captions' tokens are unknown" in notes_of(Words(2), CHINESE)[0]
    assert notes_of(Words(1), CHINESE) == []  # the token that ends every text
