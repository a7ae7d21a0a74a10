"""The calibration loss as a function of the weights: the argument of every measure.

`Objective` combines four parts and delegates to them: the weights on the path, the loss at the current weights, the
batches over all processes, and the work announced and done. Weights move in place on the device; there is never a
second model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter

from clipmerge.calibration.loss import CalibrationLoss
from clipmerge.calibration.loss import Loss as Loss
from clipmerge.calibration.path import PathWeights
from clipmerge.calibration.prompts import Prompts
from clipmerge.calibration.resume import Saved
from clipmerge.calibration.shares import Shares
from clipmerge.calibration.tower_cost import TowerCost, seconds_per_pass, tower_cost
from clipmerge.calibration.work import FORWARD as FORWARD
from clipmerge.calibration.work import GRADIENT as GRADIENT
from clipmerge.calibration.work import HESSIAN as HESSIAN
from clipmerge.calibration.work import Work
from clipmerge.checkpoint import Inputs
from clipmerge.errors import MeasureError
from clipmerge.images.batches import Batch as Batch
from clipmerge.models import ImageTextModel
from clipmerge.models.precision import Precision
from clipmerge.models.zero_shot import PROMPTS_AT_ONCE

#: Number of prompts that measures backpropagate through the text tower; if there are more, templates are drawn.
PROMPTS_A_GRADIENT = 1024


class Objective:
    """The loss at theta(alpha) plus any perturbation, over this process's share of the batches.

    Attributes:
        inputs: The checkpoints.
        path: The weights, with `layers`, `parameters`, `theta_0` and `task_vector`.
        criterion: The loss at the current weights, with `prompts`.
        shares: The batches, with `batches`, `batch_sizes`, `images` and `accelerator`.
        work: Work announced and done.
        seed: Seed for measures that draw random numbers.
        wants_gradients: Whether the recipe's method ranks entries by mean gradients.
        keep: Saved state of measures that learn; ``None`` to save nothing.
        unlabelled: Images without labels for measures that learn, shared among the processes; ``None`` for none.
    """

    wants_gradients: bool = False
    unlabelled: Shares | None = None
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
        prompts_at_once: int = PROMPTS_AT_ONCE,
        progress: Callable[[float, float], None] | None = None,
        cost: Callable[[float, float], None] | None = None,
    ) -> None:
        """Load the weights of both ends and place everything on the accelerator's device.

        Args:
            model: The model without weights.
            inputs: The checkpoints; the first fine-tuned one is theta_1.
            batches: This process's batches, on any device.
            prompts: Class prompts, class by class.
            templates: Prompts per class.
            accelerator: Places the model and gathers results.
            seed: Seed for measures that draw random numbers.
            images_at_once: Images whose activations `gradients` holds at once, with the same gradient of the batch;
                ``None`` for a whole batch.
            prompts_at_once: Prompts whose activations are held at once, with the same gradient.
            progress: Called with work done and work announced, in images x forward passes.
            cost: Called with work that is announced, prompts included, and its estimated seconds, before it starts.

        Raises:
            CheckpointError: If a weight is not finite.
            DataError: If the text tower gives all classes the same features.
            MeasureError: If fine-tuning changed nothing, or another process is gone.
        """
        self.inputs = inputs
        self.seed = seed
        self.work = Work(progress)
        self.path = PathWeights(model, inputs, accelerator.device)
        embedder = Prompts(model, prompts, templates, accelerator.device, at_once=prompts_at_once)
        self.criterion = CalibrationLoss(model, self.path, embedder)
        self.shares = Shares(batches, accelerator)
        self._images_at_once = images_at_once
        self._cost = cost
        self._seconds: dict[Precision, float] = {}

    # The checkpoints and the weights on the path

    @property
    def checkpoints(self) -> int:
        """Number of fine-tuned checkpoints."""
        return len(self.inputs.finetuned)

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Parameter names by layer; only layers that fine-tuning changed."""
        return self.path.layers

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The model's parameters by name, at the current weights; those that did not change are frozen."""
        return self.path.parameters

    @property
    def theta_0(self) -> Mapping[str, Tensor]:
        """Zero-shot values of the changed parameters by name, float32."""
        return self.path.theta_0

    @property
    def task_vector(self) -> Mapping[str, Tensor]:
        """theta_1 - theta_0 of the changed parameters by name, float32."""
        return self.path.task_vector

    @property
    def text_changes(self) -> bool:
        """Whether fine-tuning changed the text tower."""
        return self.path.text_changes

    @property
    def module(self) -> torch.nn.Module:
        """The model itself, for measures that need its modules."""
        return self.criterion.model.module

    def move_to(self, alpha: float) -> None:
        """Set the weights to theta_0 + alpha * task_vector, in place."""
        self.path.move_to(alpha)

    def forget(self, *, text: bool) -> None:
        """Drop values cached for weights that other code moved; see `PathWeights.forget`."""
        self.path.forget(text=text)

    def only(self, layer: str) -> AbstractContextManager[list[Parameter]]:
        """Let gradients flow to one layer alone; see `PathWeights.only`."""
        return self.path.only(layer)

    def gradient_of(self, name: str) -> Tensor:
        """A parameter's gradient from `gradients`; zero if the loss does not depend on it."""
        return self.path.gradient_of(name)

    # The loss at the current weights

    @property
    def prompts(self) -> Prompts:
        """The class prompts."""
        return self.criterion.prompts

    def fewer_prompts(self) -> AbstractContextManager[tuple[str, ...]]:
        """In this context, use at most `PROMPTS_A_GRADIENT` prompts, or one template per class if that is more.

        Returns:
            A context whose value is the notes for the result.
        """
        return self.criterion.fewer_prompts(PROMPTS_A_GRADIENT, self.seed)

    def prompt_features(self) -> Tensor:
        """Embed the class prompts at theta(alpha); see `CalibrationLoss.prompt_features`."""
        return self.criterion.prompt_features()

    def class_features(
        self, classes: Tensor | None = None, templates: Tensor | None = None, *, kept: bool = False
    ) -> Tensor:
        """Embed classes at the current weights; see `CalibrationLoss.class_features`."""
        return self.criterion.class_features(classes, templates, kept=kept)

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed preprocessed images at the current weights: (batch, projection_dim), unit length."""
        return self.criterion.embed(pixels)

    def image_features(self, batch: Batch) -> Tensor:
        """Embed a batch's images at the current weights: (batch, projection_dim), unit length."""
        return self.criterion.embed(batch.pixels)

    def loss(self, batch: Batch, prompt_features: Tensor, image_features: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of one batch at the current weights; see `CalibrationLoss.loss`."""
        return self.criterion.loss(batch, prompt_features, image_features)

    def logits(self, batch: Batch, prompt_features: Tensor, image_features: Tensor | None = None) -> Tensor:
        """Scaled cosine similarities of one batch with every class: (batch, classes)."""
        return self.criterion.logits(batch, prompt_features, image_features)

    def class_logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Score classes by the zero-shot head at the current weights; see `CalibrationLoss.class_logits`."""
        return self.criterion.class_logits(image_features, class_features)

    def joint_loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy with the text tower in the graph, for second derivatives."""
        return self.criterion.joint_loss(batch)

    def layer_loss(self, batch: Batch, layer: str) -> Callable[[], Tensor]:
        """The loss of one batch while only one layer moves; see `CalibrationLoss.layer_loss`."""
        return self.criterion.layer_loss(batch, layer)

    # The batches over all processes

    @property
    def accelerator(self) -> Accelerator:
        """The processes."""
        return self.shares.accelerator

    @property
    def batches(self) -> list[Batch]:
        """This process's batches."""
        return self.shares.batches

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Images in every batch of all processes."""
        return self.shares.batch_sizes

    @property
    def images(self) -> int:
        """Images over all processes."""
        return self.shares.images

    def total(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sum tensors over all processes; see `Shares.total`."""
        return self.shares.total(tensors)

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes, in place."""
        self.shares.add_up(tensor)

    def every_batch(self) -> list[Batch]:
        """All processes' batches, in order, in every process."""
        return self.shares.every_batch()

    def by_batch(self, values: dict[int, Any]) -> list[Any]:
        """Collect one value per batch from every process, in batch order."""
        return self.shares.by_batch(values)

    def mean(self, per_batch: list[float]) -> float:
        """Average one value per batch over images, weighting batches by size."""
        return self.shares.mean(per_batch)

    # Passes over this process's batches, and their work

    @cached_property
    def tower_cost(self) -> TowerCost:
        """The work of a prompt relative to that of an image."""
        return tower_cost(self.criterion, self.shares)

    def announce(
        self, *, forward: float = 0, gradient: float = 0, hessian: float = 0, prompts: float | None = None
    ) -> None:
        """Announce all passes over the data before they start, so that their cost, progress and time can be shown.

        Args:
            forward: Forward passes.
            gradient: Gradient passes, as by `gradients`.
            hessian: Products with the Hessian, each of all batches.
            prompts: Forward passes of single prompts; ``None`` to count those in the passes above, each at its own
                weights.
        """
        passes = forward * FORWARD + gradient * GRADIENT + hessian * HESSIAN
        count = self.prompt_passes(forward=forward, gradient=gradient, hessian=hessian) if prompts is None else prompts
        self.announce_work(passes * sum(len(batch) for batch in self.batches), prompts=count)

    def announce_work(self, work: float, *, prompts: float = 0, precision: Precision = "float32") -> None:
        """Announce work to come before it starts, and state its cost.

        Args:
            work: Work in images x forward passes.
            prompts: Forward passes of single prompts that are not part of it.
            precision: Precision of the passes.
        """
        self.work.announce(work)
        if self._cost:
            total = work + prompts * self.tower_cost.prompt
            if precision not in self._seconds:  # more work may be found at every bend of a path
                self._seconds[precision] = seconds_per_pass(self.criterion, self.shares, precision)
            self._cost(total, total * self._seconds[precision])

    def prompt_passes(self, *, forward: float = 0, gradient: float = 0, hessian: float = 0) -> float:
        """Count forward passes of single prompts in passes over this process's data, each pass at its own weights.

        If the text tower does not change, all prompts count once, or not at all if they were embedded before.
        """
        count, batches = self.prompts.count, len(self.batches)
        if not self.text_changes:
            return 0 if self.criterion.has_prompt_features else count
        back = GRADIENT - FORWARD + self.prompts.are_many * FORWARD  # piece by piece, each runs again
        return count * (forward + gradient * (1 + back * batches) + hessian * HESSIAN * batches)

    def prompts_of_layers(self, passes: float) -> float:
        """Count forward passes of single prompts while one layer moves at a time.

        Args:
            passes: Forward passes of all prompts for every layer of the text tower; other layers need none.
        """
        return passes * self.prompts.count * sum(layer.startswith("text.") for layer in self.layers)

    def tick(self, cost: float) -> None:
        """Report work done, in images x forward passes."""
        self.work.tick(cost)

    @torch.no_grad()
    def losses(self) -> dict[int, float]:
        """Loss of each of this process's batches at the current weights, by batch number; one forward pass."""
        features = self.prompt_features()
        values = {}
        for batch in self.batches:
            values[batch.number] = float(self.loss(batch, features))
            self.tick(FORWARD * len(batch))
        return values

    def add_gradients(
        self, batch: Batch, prompt_features: Tensor, loss_of: Loss | None = None, *, at_once: int | None = None
    ) -> float:
        """Add a batch's gradient to each parameter's ``grad``; see `CalibrationLoss.add_gradients`.

        Args:
            batch: Images and labels.
            prompt_features: (prompts, projection_dim).
            loss_of: A loss to use instead of `loss`.
            at_once: Images whose activations are in memory at once, if the user did not say.
        """
        return self.criterion.add_gradients(batch, prompt_features, loss_of, self._images_at_once or at_once)

    def most_at_once(self, at_once: int | None) -> int:
        """The largest number of images whose activations `add_gradients` holds at once, given the same ``at_once``."""
        largest = max(self.batch_sizes)
        return min(largest, self._images_at_once or at_once or largest)

    def gradients(self, loss_of: Loss | None = None) -> Iterator[tuple[Batch, float]]:
        """Iterate over the batches with each batch's own gradient in ``parameter.grad``; one gradient pass.

        The text tower runs forward once for all batches and backward once per batch, from the gradient of the
        prompt features: the same numbers as one joint backward pass.

        Args:
            loss_of: A loss to use instead of `loss`: a scalar, given a batch and the prompt features.

        Yields:
            The batch and its loss. Gradients are overwritten by the next batch.

        Raises:
            MeasureError: If a loss is not finite.
        """
        prompts = self.prompts.features() if self.text_changes else self.prompt_features()
        for batch in self.batches:
            self.path.clear_gradients()
            features = prompts.detach().requires_grad_(self.text_changes)
            value = self.add_gradients(batch, features, loss_of)
            if self.text_changes:
                prompts.backward(features.grad, retain_graph=True)  # type: ignore[no-untyped-call]
            if not value < float("inf"):
                raise MeasureError(f"the loss of calibration batch {batch.number} is {value}; check the checkpoints")
            yield batch, value
            self.tick(GRADIENT * len(batch))
        self.path.clear_gradients()
