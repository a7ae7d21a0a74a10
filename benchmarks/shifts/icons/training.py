"""A small CLIP trained contrastively on icons with captions, and fine-tuned in the same way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from benchmarks.digits.training import contrastive_loss, fit, normalised, processor
from benchmarks.shifts.icons.drawings import Icons, as_rgba, common_words
from benchmarks.shifts.pictures import PLAIN, STRONG, photographed
from benchmarks.shifts.training import (
    Pretraining,
    Regime,
    attend_eagerly,
    fast,
    reporter,
    save,
    untrained,
)

# Words of the vocabulary; others are spelled in letters.
_WORDS = 900
_STRONG_SHARE = 0.5
_EASY_SHARE = 0.3


@dataclass(frozen=True)
class _Pairs:
    """Icons of several styles with the tokens of their captions.

    Attributes:
        cover: Opacity of the drawings, 8 bits, (icons, 1, 64, 64).
        texts: Index of each caption among the distinct ones, (icons, CAPTIONS).
        tokens: Tokens of the distinct captions, (captions, length).
    """

    cover: Tensor
    texts: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, icons: list[Icons], tools: CLIPProcessor, longest: int) -> _Pairs:
        captions = [each for of_style in icons for each in of_style.captions]
        distinct = {text: 0 for of_icon in captions for text in of_icon}
        number = {text: place for place, text in enumerate(distinct)}
        tokens = tools.tokenizer(
            list(distinct), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        texts = [[number[text] for text in of_icon] for of_icon in captions]
        cover = torch.cat([each.cover for each in icons])
        return cls(cover, torch.tensor(texts), tokens["input_ids"])

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw this many icons with one caption each: RGBA drawings, the tokens of the distinct
        captions, and the caption of each drawing."""
        picked = torch.randint(len(self.cover), (count,), generator=generator)
        form = torch.randint(self.texts.shape[1], (count,), generator=generator)
        rows, target = torch.unique(self.texts[picked, form], return_inverse=True)
        return as_rgba(self.cover[picked]), self.tokens[rows], target


def pretrain(icons: list[Icons], how: Pretraining, folder: Path) -> None:
    """Train a zero-shot model on strongly varied pictures and save it, unless it exists."""
    if folder.is_dir():
        return
    captions = [text for style in icons for of_icon in style.captions for text in of_icon]
    tools = processor(common_words(captions, _WORDS))
    model = untrained(tools.tokenizer, how)
    pairs = _Pairs.of(icons, tools, model.config.text_config.max_position_embeddings)
    generator = torch.Generator().manual_seed(how.seed)

    def loss(done: float) -> Tensor:
        drawings, tokens, target = pairs.batch(how.batch, generator)
        strong = round(_STRONG_SHARE * how.batch * min(1.0, done / _EASY_SHARE))
        easy = how.batch - max(1, strong)
        parts = [
            photographed(drawings[:easy], PLAIN, generator),
            photographed(drawings[easy:], STRONG, generator),
        ]
        return _loss(model, torch.cat(parts), tokens, target)

    fit(list(model.parameters()), loss, how.steps, how.rate, reporter(folder.name))
    save(model, tools, folder)


def finetune(icons: Icons, regime: Regime, seed: int, zeroshot: Path, folder: Path) -> None:
    """Fine-tune both towers and the temperature by the contrastive loss of plain pictures and save
    them, unless they exist."""
    if folder.is_dir():
        return
    model, tools = CLIPModel.from_pretrained(zeroshot), CLIPProcessor.from_pretrained(zeroshot)
    model.train()
    attend_eagerly(model)
    pairs = _Pairs.of([icons], tools, model.config.text_config.max_position_embeddings)
    generator = torch.Generator().manual_seed(1000 + seed)

    def loss(_: float) -> Tensor:
        drawings, tokens, target = pairs.batch(regime.batch, generator)
        return _loss(model, photographed(drawings, PLAIN, generator), tokens, target)

    report = reporter(folder.name)
    parameters = list(model.parameters())
    fit(parameters, loss, regime.steps, regime.rate, report, weight_decay=regime.weight_decay)
    save(model, tools, folder)


def _loss(model: CLIPModel, pictures: Tensor, tokens: Tensor, target: Tensor) -> Tensor:
    ends = model.config.text_config.eos_token_id
    length = int((tokens == ends).int().argmax(dim=1).max()) + 1
    with fast():
        output = model(input_ids=tokens[:, :length], pixel_values=normalised(pictures))
    return contrastive_loss(output.logits_per_image.float(), target)
