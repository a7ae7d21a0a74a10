"""The class prompts on the device, and their features at the model's current weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clipmerge.models import ImageTextModel, Prefix
from clipmerge.models.zero_shot import PROMPTS_AT_ONCE, refuse_one_prompt


class Prompts:
    """Prompts class by class: entry ``c * templates + t``.

    Attributes:
        templates: Prompts per class.
        classes: Number of classes.
    """

    def __init__(
        self,
        model: ImageTextModel,
        texts: list[str],
        templates: int,
        device: torch.device,
        *,
        at_once: int = PROMPTS_AT_ONCE,
    ) -> None:
        """Tokenise the prompts.

        Args:
            model: The model that embeds them.
            texts: The prompts.
            templates: Prompts per class.
            device: Device of the model.
            at_once: Prompts whose activations are in memory at once; more are recomputed piece by piece.

        Raises:
            DataError: If the text tower gives all classes the same features.
        """
        self.templates = templates
        self.classes = len(texts) // templates
        self._model = model
        self._at_once = at_once
        tokens = model.tokens(texts)
        refuse_one_prompt([tokens], templates)
        self.tokens = {key: value.to(device) for key, value in tokens.items()}

    @property
    def are_many(self) -> bool:
        """Whether they are embedded piece by piece."""
        return self.templates * self.classes > self._at_once

    def features(self, prefix: Prefix | None = None, places: Tensor | None = None) -> Tensor:
        """Embed prompts; if there are many, the graph holds the activations of one piece at a time.

        Args:
            prefix: See `ImageTextModel.text_features`; not allowed if there are many prompts.
            places: Indices of the prompts; ``None`` for all.

        Returns:
            (prompts, projection_dim), unit length.
        """
        tokens = self.tokens if places is None else {key: value[places] for key, value in self.tokens.items()}
        if len(tokens["input_ids"]) <= self._at_once:
            return self._model.text_features(tokens, prefix)
        pieces = [checkpoint(self._model.text_features, piece, use_reentrant=False) for piece in self._pieces(tokens)]
        return torch.cat(pieces)

    def embed(self) -> Iterator[dict[str, Tensor]]:
        """Run the text tower over all prompts, piece by piece; yields the tokens of each piece before its run."""
        for tokens in self._pieces(self.tokens):
            yield tokens
            self._model.text_features(tokens)

    def places(self, classes: Tensor | None, templates: Tensor | None) -> Tensor:
        """Indices of the prompts of some classes in some templates, class by class.

        Args:
            classes: Class indices; ``None`` for all.
            templates: Template indices; ``None`` for all.
        """
        wanted = torch.arange(self.classes) if classes is None else classes
        written = torch.arange(self.templates) if templates is None else templates
        return (wanted[:, None] * self.templates + written).flatten().to(self.tokens["input_ids"].device)

    def _pieces(self, tokens: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        for piece in zip(*(torch.split(value, self._at_once) for value in tokens.values()), strict=True):
            yield dict(zip(tokens, piece, strict=True))
