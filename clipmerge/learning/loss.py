"""The calibration loss at the current weights: cross-entropy of the zero-shot head.

Class prompts pass through the text tower, are averaged over templates and compared with the image
features. Values that do not depend on the weights that moved are cached: prompt features, and the
hidden states below a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipmerge.images.batches import Batch
from clipmerge.layers import block_of, may_precede_blocks
from clipmerge.learning.path import PathWeights
from clipmerge.learning.prompts import Prompts
from clipmerge.models import ImageTextModel, Prefix
from clipmerge.models.memory import Pieces
from clipmerge.models.zero_shot import averaged


class CalibrationLoss:
    """The loss as a function of the weights on the path, plus any perturbation of them.

    Attributes:
        model: The model, on the device.
        prompts: The class prompts.
    """

    def __init__(
        self, model: ImageTextModel, path: PathWeights, prompts: Prompts, pieces: Pieces
    ) -> None:
        """Start with empty caches; images without a graph go through in these pieces."""
        self.model = model
        self.prompts = prompts
        self._path = path
        self._pieces = pieces
        # prompt features, and per tower the hidden states of one batch, each with the number of
        # moves before it
        self._prompt_features: tuple[int, Tensor] | None = None
        self._hidden: dict[str, tuple[tuple[int, int], tuple[Tensor, ...] | None]] = {}

    def prompt_features(self) -> Tensor:
        """Embed the prompts at theta(alpha), not at perturbed weights, without a graph: (prompts,
        projection_dim).

        Computed once per point, or once for all points if the text tower is the same at both ends.
        """
        moves = self._path.text_moves
        if self._prompt_features is None or self._prompt_features[0] != moves:
            with torch.no_grad():
                self._prompt_features = (moves, self.prompts.features())
        return self._prompt_features[1]

    @contextmanager
    def fewer_prompts(self, most: int, seed: int) -> Iterator[tuple[str, ...]]:
        """In this context, use fewer templates if there are many prompts (`Prompts.drawn`); yields
        a note about it.
        """
        all_prompts, features = self.prompts, self._prompt_features
        fewer = all_prompts.drawn(most, seed)
        if fewer is all_prompts:
            yield ()
            return
        self.prompts, self._prompt_features = fewer, None
        self._hidden.pop("text", None)
        used = f"{fewer.templates} of {all_prompts.templates} templates"
        try:
            yield (f"measured with {used}, drawn at random, to bound the cost",)
        finally:
            self.prompts, self._prompt_features = all_prompts, features
            self._hidden.pop("text", None)

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
        places = self.prompts.places(classes, templates)
        anew = self._path.text_changes and not cached
        features = self.prompts.features(places=places) if anew else self.prompt_features()[places]
        return averaged(features, self.prompts.templates if templates is None else len(templates))

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed preprocessed images at the current weights: (batch, projection_dim), unit
        length.
        """
        if torch.is_grad_enabled():
            return self.model.image_features(pixels)
        return self._pieces.forward(self.model.image_features, pixels)

    def loss(
        self, batch: Batch, prompt_features: Tensor, image_features: Tensor | None = None
    ) -> Tensor:
        """Mean cross-entropy of one batch at the current weights, in nats."""
        return cross_entropy(self.logits(batch, prompt_features, image_features), batch.labels)

    def logits(
        self, batch: Batch, prompt_features: Tensor, image_features: Tensor | None = None
    ) -> Tensor:
        """Scaled cosine similarities of one batch with every class: (batch, classes); arguments as
        in `loss`.
        """
        images = self.embed(batch.pixels) if image_features is None else image_features
        return self.model.logits(images, averaged(prompt_features, self.prompts.templates))

    def joint_loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy with the text tower in the graph, for second derivatives, in nats."""
        if not self._path.text_changes:
            return self.loss(batch, self.prompt_features())
        return self.loss(batch, self.prompts.features())

    def layer_loss(self, batch: Batch, layer: str) -> Callable[[], Tensor]:
        """A function that computes the loss of one batch while only this layer moves, as cheaply as
        possible.

        The other tower's features and the hidden states below the layer's block are computed at
        theta(alpha) and cached for the batch: call this at theta(alpha), for all layers of a batch
        before the next batch.
        """
        if not layer.startswith("text."):
            prompts = self.prompt_features()
            images = self._prefix("vision", layer, batch)
            return lambda: self.loss(
                batch, prompts, self.model.image_features(batch.pixels, images)
            )
        with torch.no_grad():
            features = self.model.image_features(
                batch.pixels, self._prefix("vision", "logit_scale", batch)
            )
        start = self._prefix("text", layer, batch)
        return lambda: self.loss(batch, self.prompts.features(start), features)

    def _prefix(self, tower: Literal["vision", "text"], layer: str, batch: Batch) -> Prefix | None:
        """The first block affected by a layer's change, and its input; ``None`` if no block can be
        skipped.
        """
        if may_precede_blocks(layer) or (tower == "text" and self.prompts.are_many):
            return None
        # prompts are the same for every batch
        key = (self._path.moves, batch.number if tower == "vision" else 0)
        if tower not in self._hidden or self._hidden[tower][0] != key:
            self._hidden.pop(tower, None)  # free it before the next ones take as much memory
            inputs = batch.pixels if tower == "vision" else self.prompts.tokens
            self._hidden[tower] = (key, self.model.hidden_states(tower, inputs))
        states = self._hidden[tower][1]
        if states is None:
            return None
        place = block_of(layer)
        first = place[1] if place else len(states) - 1
        return first, states[first]
