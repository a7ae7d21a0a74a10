"""The class prompts on the device, and their features at the model's current weights."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import torch
from torch import Tensor

from clipmerge.distributed import to_device
from clipmerge.models import ImageTextModel, Prefix
from clipmerge.models.blocks import run_twice
from clipmerge.models.zero_shot import PROMPTS_AT_ONCE, refuse_one_prompt

# Tokens whose activations are held at once, whatever the number of prompts.
_TOKENS_AT_ONCE = 4096


class Prompts:
    """Prompts class by class: entry ``c * templates + t``.

    Attributes:
        templates: Prompts per class.
        classes: Number of classes.
        tokens: Result of `ImageTextModel.tokens`, on the device.
        at_once: Prompts whose activations are held at once.
    """

    def __init__(
        self, model: ImageTextModel, texts: list[str], templates: int, device: torch.device
    ) -> None:
        """Tokenise the prompts."""
        self.templates = templates
        self.classes = len(texts) // templates
        self._model = model
        tokens = model.tokens(texts)
        refuse_one_prompt([tokens], templates)
        self.tokens = {key: value.to(device) for key, value in tokens.items()}
        self.at_once = max(
            1, min(PROMPTS_AT_ONCE, _TOKENS_AT_ONCE // self.tokens["input_ids"].shape[1])
        )

    @property
    def count(self) -> int:
        """Number of prompts."""
        return self.templates * self.classes

    def drawn(self, most: int, seed: int) -> Prompts:
        """Draw templates, the same for all classes, so that at most ``most`` prompts remain; at
        least one template.
        """
        if self.count <= most or self.templates == 1:
            return self
        generator = torch.Generator().manual_seed(seed)
        chosen = (
            torch.randperm(self.templates, generator=generator)[: max(1, most // self.classes)]
            .sort()
            .values
        )
        places = self.places(None, chosen)
        fewer = copy(self)
        fewer.templates = len(chosen)
        fewer.tokens = {key: value[places] for key, value in self.tokens.items()}
        return fewer

    @property
    def are_many(self) -> bool:
        """Whether there are so many prompts that they are embedded piece by piece."""
        return self.count > self.at_once

    def features(self, prefix: Prefix | None = None, places: Tensor | None = None) -> Tensor:
        """Embed prompts: (prompts, projection_dim); of many, the graph holds one piece's
        activations at a time.
        """
        tokens = (
            self.tokens
            if places is None
            else {key: value[places] for key, value in self.tokens.items()}
        )
        if len(tokens["input_ids"]) <= self.at_once:
            return self._model.text_features(tokens, prefix)
        return torch.cat(
            [run_twice(self._model.text_features, piece) for piece in self._pieces(tokens)]
        )

    def embed(self) -> Iterator[dict[str, Tensor]]:
        """Run the text tower over all prompts, piece by piece; yields the tokens of each piece
        before its run.
        """
        for tokens in self._pieces(self.tokens):
            yield tokens
            self._model.text_features(tokens)

    def places(self, classes: Tensor | None, templates: Tensor | None) -> Tensor:
        """Indices of the prompts of some classes in some templates, class by class."""
        wanted = torch.arange(self.classes) if classes is None else classes
        written = torch.arange(self.templates) if templates is None else templates
        return to_device(
            (wanted[:, None] * self.templates + written).flatten(), self.tokens["input_ids"].device
        )

    def _pieces(self, tokens: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        for piece in zip(
            *(torch.split(value, self.at_once) for value in tokens.values()), strict=True
        ):
            yield dict(zip(tokens, piece, strict=True))
