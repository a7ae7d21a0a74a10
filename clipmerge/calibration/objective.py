"""The calibration loss as a function of the weights: what every measure differentiates.

The loss is the cross-entropy of the zero-shot head: class prompts through the text tower, averaged over
templates, against the image features. Weights move in place on the device; there is never a second model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipmerge.calibration.path import both_ends
from clipmerge.calibration.prompts import Prompts
from clipmerge.calibration.resume import Saved
from clipmerge.checkpoint import Inputs
from clipmerge.distributed import together
from clipmerge.errors import MeasureError
from clipmerge.images.batches import Batch as Batch
from clipmerge.layers import block_of
from clipmerge.models import ImageTextModel, Prefix
from clipmerge.models.zero_shot import averaged

# Cost of a batch in forward passes: a gradient is about three, a Hessian-vector product about six.
FORWARD, GRADIENT, HESSIAN = 1, 3, 6

#: Scores a batch against prompt features (prompts, projection_dim).
Loss = Callable[[Batch, Tensor], Tensor]


class Objective:
    """The loss at theta(alpha) plus any perturbation, over this process's share of the batches.

    Attributes:
        inputs: The checkpoints.
        layers: Layer to parameter names; only layers that fine-tuning changed.
        parameters: Name to parameter, set to theta(alpha) by `move_to`; those that did not change are frozen.
        theta_0: Name to zero-shot parameter, float32, for the changed parameters.
        task_vector: Name to theta_1 - theta_0, likewise.
        prompts: The class prompts.
        batches: This process's batches.
        batch_sizes: Images in every batch of all processes.
        seed: Seed for measures that draw.
        keep: Where measures that learn save what they have on the way; ``None`` for nowhere.
    """

    keep: Saved | None = None

    def __init__(
        self,
        model: ImageTextModel,
        inputs: Inputs,
        batches: Iterable[Batch],
        prompts: list[str],
        *,
        templates: int,
        accelerator: Accelerator,
        seed: int = 0,
        images_at_once: int | None = None,
        progress: Callable[[float, float], None] | None = None,
    ) -> None:
        """Load the weights of both ends and place everything on the accelerator's device.

        Args:
            model: The model without weights.
            inputs: The checkpoints; the first fine-tuned one is theta_1.
            batches: This process's batches, on any device.
            prompts: Class prompts, class by class.
            templates: Prompts a class.
            accelerator: Places the model and gathers results.
            seed: Seed for measures that draw.
            images_at_once: Images whose activations `gradients` holds at once; the batch's gradient stays the same.
                ``None`` for a whole batch.
            progress: Called with work done and work announced, in images x forward passes.

        Raises:
            MeasureError: If a weight is not finite, or fine-tuning changed nothing.
        """
        self.seed = seed
        self.accelerator = accelerator
        self._model = model
        self.inputs = inputs
        self._images_at_once = images_at_once
        self._progress = progress
        self._done = self._announced = 0.0
        device = accelerator.device
        model.load(inputs.theta_0)
        model.module.to(device)
        self.parameters = model.parameters
        self.theta_0, self.task_vector = both_ends(self.parameters, inputs, device)
        changed = {layer: tuple(n for n in names if n in self.task_vector) for layer, names in inputs.layers.items()}
        self.layers = {layer: names for layer, names in changed.items() if names}
        self.prompts = Prompts(model, prompts, templates, device)
        self.text_changes = any(layer.startswith("text.") for layer in self.layers)
        self._prompt_features: Tensor | None = None
        self._hidden: dict[str, tuple[int, tuple[Tensor, ...] | None]] = {}
        self.batches = [Batch(b.number, b.pixels.to(device), b.labels.to(device)) for b in batches]
        sizes = dict(self.gather([(batch.number, len(batch)) for batch in self.batches]))
        self.batch_sizes = tuple(sizes[number] for number in sorted(sizes))

    @property
    def checkpoints(self) -> int:
        """Number of fine-tuned checkpoints."""
        return len(self.inputs.finetuned)

    @property
    def images(self) -> int:
        """Images over all processes."""
        return sum(self.batch_sizes)

    def announce(self, *, forward: float = 0, gradient: float = 0, hessian: float = 0) -> None:
        """Say how many passes over the data are coming, so that progress and time left can be shown."""
        passes = forward * FORWARD + gradient * GRADIENT + hessian * HESSIAN
        self.announce_work(passes * sum(len(batch) for batch in self.batches))

    def announce_work(self, work: float) -> None:
        """Say how much work is coming, in images x forward passes."""
        self._announced += work

    def tick(self, cost: float) -> None:
        """Report work done, in images x forward passes."""
        self._done += cost
        if self._progress:
            self._progress(self._done, self._announced)

    def gather(self, items: list[Any]) -> list[Any]:
        """Collect items from every process, in every process."""
        if self.accelerator.num_processes == 1:
            return items
        with together():
            gathered: list[Any] = gather_object(items)
        return gathered

    def total(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add up tensors over all processes.

        Args:
            tensors: This process's, by name; the same names and shapes in every process.

        Returns:
            The sums, on the CPU.
        """
        with together():
            return {name: self.accelerator.reduce(value, "sum").cpu() for name, value in tensors.items()}

    def every_batch(self) -> list[Batch]:
        """All processes' batches, in order, in every process."""
        if self.accelerator.num_processes == 1:
            return self.batches
        held = self.gather([Batch(b.number, b.pixels.cpu(), b.labels.cpu()) for b in self.batches])
        device = self.accelerator.device
        ordered = sorted(held, key=lambda batch: batch.number)
        return [Batch(batch.number, batch.pixels.to(device), batch.labels.to(device)) for batch in ordered]

    def by_batch(self, values: dict[int, Any]) -> list[Any]:
        """Collect one value a batch from every process, in batch order."""
        everything = dict(self.gather(list(values.items())))
        return [everything[number] for number in sorted(everything)]

    def mean(self, per_batch: list[float]) -> float:
        """Average over images: batches weigh by their size."""
        total = sum(size * value for size, value in zip(self.batch_sizes, per_batch, strict=True))
        return float(total / self.images)

    @torch.no_grad()
    def move_to(self, alpha: float) -> None:
        """Set the weights to theta_0 + alpha * task_vector, in place."""
        self.forget(text=self.text_changes)
        for name, task_vector in self.task_vector.items():
            torch.add(self.theta_0[name], task_vector, alpha=alpha, out=self.parameters[name].data)

    def forget(self, *, text: bool) -> None:
        """Drop what was kept for weights that have moved since; prompts too if the text tower has."""
        self._hidden.clear()
        if text:
            self._prompt_features = None

    @contextmanager
    def only(self, layer: str) -> Iterator[list[torch.nn.Parameter]]:
        """Let gradients flow to one layer alone, so that backward stops there."""
        chosen = [self.parameters[name] for name in self.layers[layer]]
        for name in self.task_vector:
            self.parameters[name].requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        try:
            yield chosen
        finally:
            for name in self.task_vector:
                self.parameters[name].requires_grad_(True)

    def prompt_features(self) -> Tensor:
        """Embed the class prompts at theta(alpha), where `move_to` went; not at perturbed weights.

        Returns:
            (prompts, projection_dim), unit length, without a graph. Computed once a point, and once for all when
            the text tower is the same at both ends.
        """
        if self._prompt_features is None:
            with torch.no_grad():
                self._prompt_features = self.prompts.features()
        return self._prompt_features

    @property
    def module(self) -> torch.nn.Module:
        """The model itself, for what looks into it."""
        return self._model.module

    def class_features(
        self, classes: Tensor | None = None, templates: Tensor | None = None, *, kept: bool = False
    ) -> Tensor:
        """Embed classes at the weights of the moment, with a graph where the text tower changes.

        Args:
            classes: Which, ascending; ``None`` for all.
            templates: Which of the templates to average; ``None`` for all.
            kept: Whether to take them from `prompt_features`, which embeds all prompts, once, and has no graph.

        Returns:
            (classes, projection_dim), unit length.
        """
        places = self.prompts.places(classes, templates)
        anew = self.text_changes and not kept
        features = self.prompts.features(places=places) if anew else self.prompt_features()[places]
        return averaged(features, self.prompts.templates if templates is None else len(templates))

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed preprocessed images at the current weights: (batch, projection_dim), unit length."""
        return self._model.image_features(pixels)

    def image_features(self, batch: Batch) -> Tensor:
        """Embed a batch's images at the current weights: (batch, projection_dim), unit length."""
        return self.embed(batch.pixels)

    def loss(self, batch: Batch, prompt_features: Tensor, image_features: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of one batch at the current weights.

        Args:
            batch: Images and labels.
            prompt_features: (prompts, projection_dim).
            image_features: (batch, projection_dim), when they are known already.

        Returns:
            Scalar, in nats.
        """
        return cross_entropy(self.logits(batch, prompt_features, image_features), batch.labels)

    def logits(self, batch: Batch, prompt_features: Tensor, image_features: Tensor | None = None) -> Tensor:
        """Scaled cosine similarities of one batch with every class: (batch, classes); arguments as in `loss`."""
        images = self.image_features(batch) if image_features is None else image_features
        return self.class_logits(images, averaged(prompt_features, self.prompts.templates))

    def class_logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Score classes by the zero-shot head at the current weights.

        Args:
            image_features: (batch, projection_dim), unit length.
            class_features: (classes, projection_dim), unit length.

        Returns:
            (batch, classes).
        """
        return self._model.logits(image_features, class_features)

    def joint_loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy with the text tower in the graph too, for second derivatives.

        Returns:
            Scalar, in nats.
        """
        if not self.text_changes:
            return self.loss(batch, self.prompt_features())
        return self.loss(batch, self.prompts.features())

    def layer_loss(self, batch: Batch, layer: str) -> Callable[[], Tensor]:
        """The loss of one batch while only one layer moves, as cheap as that allows.

        The other tower's features and the hidden states below the layer's block are those at theta(alpha), kept
        for the batch: call this at theta(alpha), all layers of a batch before the next batch.

        Args:
            batch: Images and labels.
            layer: The layer that will be perturbed.

        Returns:
            A function that computes the loss at the weights of the moment, scalar, in nats.
        """
        if not layer.startswith("text."):
            prompts = self.prompt_features()
            images = self._prefix("vision", layer, batch)
            return lambda: self.loss(batch, prompts, self._model.image_features(batch.pixels, images))
        with torch.no_grad():
            features = self._model.image_features(batch.pixels, self._prefix("vision", "logit_scale", batch))
        start = self._prefix("text", layer, batch)
        return lambda: self.loss(batch, self.prompts.features(start), features)

    def _prefix(self, tower: Literal["vision", "text"], layer: str, batch: Batch) -> Prefix | None:
        """The first block that a layer's change reaches, and what enters it; ``None``: nothing is skipped."""
        if layer.endswith(("embeddings", "pre_norm")) or (tower == "text" and self.prompts.are_many):
            return None
        known = self._hidden.get(tower)
        if known is None or (tower == "vision" and known[0] != batch.number):
            inputs = batch.pixels if tower == "vision" else self.prompts.tokens
            known = self._hidden[tower] = (batch.number, self._model.hidden_states(tower, inputs))
        states = known[1]
        if states is None:
            return None
        place = block_of(layer)
        first = place[1] if place else len(states) - 1
        return first, states[first]

    def gradient_of(self, name: str) -> Tensor:
        """The gradient that `gradients` left for a parameter; zero where the loss does not reach it."""
        gradient = self.parameters[name].grad
        return torch.zeros_like(self.parameters[name]) if gradient is None else gradient

    @torch.no_grad()
    def losses(self) -> dict[int, float]:
        """Loss of each of this process's batches at the current weights; one forward pass."""
        features = self.prompt_features()
        found = {}
        for batch in self.batches:
            found[batch.number] = float(self.loss(batch, features))
            self.tick(FORWARD * len(batch))
        return found

    def gradients(self, loss_of: Loss | None = None) -> Iterator[tuple[Batch, float]]:
        """Walk the batches with each batch's own gradient in ``parameter.grad``; one gradient pass.

        The text tower runs forward once for all batches and backward once a batch, from the gradient of the
        prompt features: the same numbers as one joint backward pass.

        Args:
            loss_of: Another loss than `loss`, a scalar of a batch and the prompt features.

        Yields:
            The batch and its loss. Gradients are overwritten by the next.

        Raises:
            MeasureError: If a loss is not finite.
        """
        prompts = self.prompts.features() if self.text_changes else self.prompt_features()
        for batch in self.batches:
            for name in self.task_vector:
                self.parameters[name].grad = None
            features = prompts.detach().requires_grad_(self.text_changes)
            value = self._add_gradients(batch, features, loss_of)
            if self.text_changes:
                prompts.backward(features.grad, retain_graph=True)  # type: ignore[no-untyped-call]
            if not value < float("inf"):
                raise MeasureError(f"the loss of calibration batch {batch.number} is {value}; check the checkpoints")
            yield batch, value
            self.tick(GRADIENT * len(batch))
        for name in self.task_vector:
            self.parameters[name].grad = None

    def _add_gradients(self, batch: Batch, features: Tensor, loss_of: Loss | None) -> float:
        """Add a batch's gradient into ``grad``, its own loss piece by piece; gives the batch's loss."""
        value = 0.0
        for piece in [batch] if loss_of else batch.pieces(self._images_at_once):
            loss = (loss_of or self.loss)(piece, features) * (len(piece) / len(batch))
            loss.backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
        return value
