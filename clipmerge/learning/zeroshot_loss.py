"""The zero-shot loss at the current weights: cross-entropy of images with their class prompts.

Class prompts pass through the text tower, are averaged over templates and compared with the image
features. Features that do not depend on the weights that moved are cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from clipmerge.distributed import to_device
from clipmerge.finding import Finding
from clipmerge.images.batches import Batch
from clipmerge.learning.weights import InterpolatedWeights
from clipmerge.models import ImageTextModel
from clipmerge.models.memory import MicroBatcher
from clipmerge.models.zero_shot import PROMPTS_AT_ONCE, average_over_templates, refuse_one_prompt

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

    def drawn(self, max_prompts: int, seed: int) -> Prompts:
        """Draw templates, the same for all classes, so that at most ``max_prompts`` prompts
        remain; at least one template.
        """
        if self.count <= max_prompts or self.templates == 1:
            return self
        generator = torch.Generator().manual_seed(seed)
        chosen = (
            torch.randperm(self.templates, generator=generator)[
                : max(1, max_prompts // self.classes)
            ]
            .sort()
            .values
        )
        positions = self.positions(None, chosen)
        fewer = copy(self)
        fewer.templates = len(chosen)
        fewer.tokens = {key: value[positions] for key, value in self.tokens.items()}
        return fewer

    @property
    def are_many(self) -> bool:
        """Whether there are so many prompts that they are embedded piece by piece."""
        return self.count > self.at_once

    def features(self, positions: Tensor | None = None) -> Tensor:
        """Embed prompts: (prompts, projection_dim); of many, the graph holds one piece's
        activations at a time.
        """
        tokens = (
            self.tokens
            if positions is None
            else {key: value[positions] for key, value in self.tokens.items()}
        )
        if len(tokens["input_ids"]) <= self.at_once:
            return self._model.text_features(tokens)
        run = self._model.text_features
        return torch.cat(
            [checkpoint(run, piece, use_reentrant=False) for piece in self._pieces(tokens)]
        )

    def embed(self) -> Iterator[dict[str, Tensor]]:
        """Run the text tower over all prompts, piece by piece; yields the tokens of each piece
        before its run.
        """
        for tokens in self._pieces(self.tokens):
            yield tokens
            self._model.text_features(tokens)

    def positions(self, classes: Tensor | None, templates: Tensor | None) -> Tensor:
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


class ZeroShotLoss:
    """The loss at the weights that the model has now, interpolated or perturbed.

    Attributes:
        model: The model, on the device.
        prompts: The class prompts.
        is_contrastive: Whether the loss compares the images of a batch with one another, so that a
            batch is computed as a whole.
    """

    is_contrastive: ClassVar[bool] = False

    def __init__(
        self,
        model: ImageTextModel,
        weights: InterpolatedWeights,
        prompts: Prompts,
        micro_batcher: MicroBatcher,
    ) -> None:
        """Start with empty caches."""
        self.model = model
        self.prompts = prompts
        self._weights = weights
        self._micro_batcher = micro_batcher
        # prompt features, and the image features of one batch, with the number of moves before
        self._prompt_features: tuple[int, Tensor] | None = None
        self._image_features: tuple[tuple[int, int], Tensor] | None = None

    def prompt_features(self) -> Tensor:
        """Embed the prompts at theta(alpha), not at perturbed weights, without a graph: (prompts,
        projection_dim).

        Computed once per point, or once for all points if the text tower is the same at both ends.
        """
        moves = self._weights.text_moves
        if self._prompt_features is None or self._prompt_features[0] != moves:
            with torch.no_grad():
                self._prompt_features = (moves, self.prompts.features())
        return self._prompt_features[1]

    def limit_prompts(self, at_once: int) -> None:
        """Embed no more prompts at once than their activations fit into a card's memory."""
        self.prompts.at_once = at_once

    @contextmanager
    def fewer_prompts(self, max_prompts: int, seed: int) -> Iterator[tuple[Finding, ...]]:
        """In this context, use fewer templates if there are many prompts (`Prompts.drawn`); yields
        a note about it.
        """
        all_prompts = self.prompts
        features = self._prompt_features
        fewer = all_prompts.drawn(max_prompts, seed)
        if fewer is all_prompts:
            yield ()
            return
        self.prompts = fewer
        self._prompt_features = None
        templates = all_prompts.templates
        try:
            yield (Finding.of("drawn-templates", used=fewer.templates, templates=templates),)
        finally:
            self.prompts = all_prompts
            self._prompt_features = features

    def class_features(
        self,
        classes: Tensor | None = None,
        templates: Tensor | None = None,
        *,
        cached: bool = False,
    ) -> Tensor:
        """Embed classes at the current weights: (classes, projection_dim), with a graph if the text
        tower changes.

        ``cached`` averages `prompt_features` instead, which embeds all prompts once and has no
        graph.
        """
        positions = self.prompts.positions(classes, templates)
        anew = self._weights.text_changes and not cached
        features = (
            self.prompts.features(positions=positions)
            if anew
            else self.prompt_features()[positions]
        )
        return average_over_templates(
            features, self.prompts.templates if templates is None else len(templates)
        )

    def embed(self, pixels: Tensor, at_once: int | None = None) -> Tensor:
        """Embed preprocessed images at the current weights: (batch, projection_dim), unit length;
        a graph holds the activations of ``at_once`` images at a time.
        """
        if torch.is_grad_enabled():
            if at_once is None or at_once >= len(pixels):
                return self.model.image_features(pixels)
            pieces = torch.split(pixels, at_once)
            run = self.model.image_features
            return torch.cat([checkpoint(run, piece, use_reentrant=False) for piece in pieces])
        return self._micro_batcher.forward(self.model.image_features, pixels)

    def loss(
        self,
        batch: Batch,
        prompt_features: Tensor,
        image_features: Tensor | None = None,
        *,
        at_once: int | None = None,
    ) -> Tensor:
        """Mean loss of one batch at the current weights, in nats."""
        return self.mean_loss(
            *self.batch_scores(batch, prompt_features, image_features, at_once=at_once)
        )

    def batch_scores(
        self,
        batch: Batch,
        prompt_features: Tensor,
        image_features: Tensor | None = None,
        *,
        at_once: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scaled cosine similarities of one batch with every class, (batch, classes), and the class
        of each image, (batch,); arguments as in `loss`.
        """
        images = self.embed(batch.pixels, at_once) if image_features is None else image_features
        classes = average_over_templates(prompt_features, self.prompts.templates)
        return self.model.logits(images, classes), batch.labels

    def image_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of each image, (images,), in nats, from `batch_scores`."""
        return cross_entropy(logits, labels, reduction="none")

    def mean_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy, in nats, from `batch_scores`."""
        return cross_entropy(logits, labels)

    def joint_loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy with the text tower in the graph, for second derivatives, in nats."""
        if not self._weights.text_changes:
            return self.loss(batch, self.prompt_features())
        return self.loss(batch, self.prompts.features())

    def layer_loss(self, batch: Batch, layer: str) -> Callable[[], Tensor]:
        """A function that computes the loss of one batch while only this layer moves.

        Features of a tower that stays are computed at theta(alpha): call this at theta(alpha), for
        all layers of a batch before the next batch.
        """
        if layer.startswith("vision."):
            prompts = self.prompt_features()
            return lambda: self.loss(batch, prompts, self.model.image_features(batch.pixels))
        key = (self._weights.moves, batch.number)
        if self._image_features is None or self._image_features[0] != key:
            with torch.no_grad():
                self._image_features = (key, self.model.image_features(batch.pixels))
        images = self._image_features[1]
        if layer.startswith("text."):
            return lambda: self.loss(batch, self.prompts.features(), images)
        prompts = self.prompt_features()
        return lambda: self.loss(batch, prompts, images)
