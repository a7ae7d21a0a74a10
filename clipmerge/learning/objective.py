"""The loss on some images as a function of the weights: the argument of every measure."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor

from clipmerge.distributed import DistributedContext, all_reduce_
from clipmerge.errors import ClipmergeError
from clipmerge.images.batches import Batch as Batch
from clipmerge.learning.interpolate import WeightPath
from clipmerge.learning.resume import LearningState
from clipmerge.models.classifier import Classifier, Comparison
from clipmerge.models.passes import MicroBatcher, affordable_images, embed_with_graph
from clipmerge.planning.measurements import Statistic
from clipmerge.progress import Progress
from clipmerge.types import Tensors

#: A scalar loss of a whole batch, given its logits and the column of each image's own class.
Loss = Callable[[Batch, Tensor, Tensor], Tensor]
#: Most prompts in a backward pass: about as much work as the images of a step of learning. If there
#: are more, templates are drawn, and then classes.
PROMPTS_A_GRADIENT = 256
# A small batch has fewer: three for each image, and at least as many as for eight images. Three
# prompts cost about a quarter as much as an image.
_PROMPTS_AN_IMAGE, _FEWEST_IMAGES = 3, 8
# Cost of a pass over images, in forward passes.
FORWARD, GRADIENT = 1, 3


class Labelled(NamedTuple):
    """Labelled images, and the classifier of their classes."""

    images: Batch
    classifier: Classifier


class Work:
    """Counts the work of a measure, in images x forward passes, and reports the progress.

    Work is announced before it is done, so that the remaining time is known.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._announced = self._done = 0.0

    def announce(self, work: float) -> None:
        """Add work to the total that the progress is a share of."""
        self._announced += work

    def count(self, work: float) -> None:
        """Count finished work, and report the progress."""
        self._done += work
        self._progress.advance(self._done, self._announced)


@dataclass(eq=False)
class Objective:
    """The loss on some images at the current weights of a path.

    A measure moves `path`, and reads losses and gradients. Several processes share the batches.

    Attributes:
        path: The model between its ends.
        classifier: Scores images against their classes.
        images: All images, the same in every process, on the device.
        context: The processes.
        batch_size: Images in every batch but the last.
        val: Images that choose how far learning goes; ``None`` for none.
        ood: Images of shifts and other tasks, by source. Learning uses them in addition to
            ``images``.
        seed: Seed for measures that draw random numbers.
        wants_gradients: Whether the recipe's method ranks entries by mean gradients.
        state: Saves and restores the state of learning; ``None`` to save nothing.
        progress: Receives the progress and notes for the user.
        micro_batcher: Bounds the activations in memory.
        batches: This process's batches of `images`.
        batch_sizes: Number of images in every batch of all processes.
        work: Counts the work.
    """

    path: WeightPath
    classifier: Classifier
    images: Batch
    context: DistributedContext
    batch_size: int
    val: Labelled | None = None
    ood: Sequence[Labelled] = ()
    seed: int = 0
    wants_gradients: bool = False
    state: LearningState | None = None
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        """Deal the batches out to the processes.

        Raises:
            ClipmergeError: If fine-tuning changed nothing.
        """
        if not self.path.layers:
            sources = " and ".join(each.source for each in self.path.inputs.checkpoints)
            raise ClipmergeError(
                f"{sources} hold the same weights; there is nothing to measure or merge"
            )
        self.images = self.images.to(self.path.device)
        self.ood = [each._replace(images=each.images.to(self.path.device)) for each in self.ood]
        every = self.images.pieces(self.batch_size)
        self.batch_sizes = tuple(map(len, every))
        self.batches = every[self.context.rank :: self.context.world_size]
        self.micro_batcher = MicroBatcher(self.progress.warn, self.classifier.spare_memory)
        self.work = Work(self.progress)

    def announce(self, *, forward: float = 0, gradient: float = 0) -> None:
        """Announce passes over this process's batches before they start."""
        passes = forward * FORWARD + gradient * GRADIENT
        self.work.announce(passes * sum(map(len, self.batches)))

    # Forward passes

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed images without a graph, fewer at once where memory runs out: (images, width)."""
        return self.micro_batcher.forward(self.classifier.model.image_features, pixels).float()

    def draw(self, batch: Batch, most: int | None = None) -> Comparison:
        """Draw the prompts that a batch is compared with, the same at every point of the path; by
        default no more than a backward pass can afford.
        """
        if most is None:
            images = max(self.batch_size, _FEWEST_IMAGES)
            most = min(PROMPTS_A_GRADIENT, _PROMPTS_AN_IMAGE * images)
        seed = self.seed * 100_003 + batch.number
        prompts, columns = self.classifier.draw(batch.labels, seed, most)
        if prompts is not None and not self.classifier.compares_images:
            every = self.classifier.classes * self.classifier.templates
            self.progress.warn(
                f"measured with at most {most} of {every} prompts for each batch, drawn at random,"
                " to bound the cost"
            )
        return prompts, columns

    @torch.no_grad()
    def loss_and_accuracy(self, *, drawn: bool = False) -> tuple[float, float]:
        """Compute the mean loss and the accuracy over all images; one forward pass.

        Args:
            drawn: Use the drawn prompts, as gradients do, in place of all prompts.

        Raises:
            ClipmergeError: If a loss is not finite.
        """
        values = {}
        for batch in self.batches:
            prompts, columns = self.draw(batch, None if drawn else sys.maxsize)
            classes = self.classifier.class_features(prompts)
            logits = self.classifier.logits(self.embed(batch.pixels), classes)
            losses = self.classifier.image_losses(logits, columns)
            right = (logits.argmax(-1) == columns).float()
            loss = _require_finite(batch, float(losses.mean()))
            values[batch.number] = (loss, float(right.mean()))
            self.work.count(FORWARD * len(batch))
        rows = zip(*self.gather_by_batch(values), strict=True)
        loss, accuracy = map(self.mean, rows)
        return loss, accuracy

    # Gradients

    def gradients(self, loss_of: Loss | None = None) -> Iterator[tuple[Batch, float]]:
        """Compute the gradient of each batch, one after another, into ``parameter.grad``; one
        gradient pass.

        Args:
            loss_of: The loss of a batch, by default the mean of its images' losses.

        Yields:
            The batch and its loss. Gradients are overwritten by the next batch.

        Raises:
            ClipmergeError: If a loss is not finite.
        """
        self.bound_activations()
        for batch in self.batches:
            run = partial(self._backward, batch, loss_of)
            yield batch, _require_finite(batch, self.micro_batcher.run(len(batch), run))
            self.work.count(GRADIENT * len(batch))
        self.path.clear_gradients()

    def _backward(self, batch: Batch, loss_of: Loss | None, at_once: int) -> float:
        """Compute a batch's gradient, after clearing the gradients of a failed attempt."""
        self.path.clear_gradients()
        classifier = self.classifier
        prompts, columns = self.draw(batch)
        classes = classifier.class_features(prompts)
        images = embed_with_graph(
            classifier.model.image_features, torch.split(batch.pixels, at_once)
        )
        logits = classifier.logits(images, classes)
        if loss_of is None:
            loss = classifier.image_losses(logits, columns).mean()
        else:
            loss = loss_of(batch, logits, columns)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def bound_activations(self) -> None:
        """Limit the images whose activations are held at once, if the memory's size is known."""
        if self.micro_batcher.max_images is None:
            model = self.classifier.model
            image = self.images.pixels[:1].clone()  # a view would count all images
            count = affordable_images(model.module, model.image_features, image)
            self.micro_batcher.max_images = count

    # Several processes

    def gather_by_batch(self, values: dict[int, Any]) -> list[Any]:
        """Collect one value per batch from every process, in batch order."""
        everyone = dict(gather_object(list(values.items())))
        return [everyone[number] for number in sorted(everyone)]

    def mean(self, per_batch: Sequence[float]) -> float:
        """Average one value per batch over images: weight batches by size."""
        pairs = zip(self.batch_sizes, per_batch, strict=True)
        return sum(size * value for size, value in pairs) / sum(self.batch_sizes)

    def statistic(self, name: str, values: dict[int, list[float]], **reading: Any) -> Statistic:
        """Average one value per batch and layer over the images of all processes.

        Args:
            name: Name of the statistic.
            values: One value per layer, in the order of ``path.layers``, by number of this
                process's batches.
            **reading: Fields of `StatisticAbout`: ``signed``, ``unit``, ``title``, ``about``.
        """
        columns = zip(*self.gather_by_batch(values), strict=True)
        batches = dict(zip(self.path.layers, columns, strict=True))
        means = {layer: self.mean(column) for layer, column in batches.items()}
        return Statistic(name=name, values=means, batches=batches, **reading)

    def sum_over_processes(self, tensors: Tensors) -> Tensors:
        """Sum tensors of the same names and shapes over all processes; the sums lie on the CPU."""
        for value in tensors.values():
            all_reduce_(self.context, value)
        return {name: value.cpu() for name, value in tensors.items()}


def _require_finite(batch: Batch, loss: float) -> float:
    """Return a batch's loss if it is finite."""
    if not math.isfinite(loss):
        raise ClipmergeError(
            f"the loss of calibration batch {batch.number} is {loss}; check the checkpoints"
        )
    return loss
