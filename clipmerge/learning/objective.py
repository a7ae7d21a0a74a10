"""The zero-shot loss as a function of the weights: the argument of every measure.

`Objective` combines four parts and delegates to them: the interpolated weights, the loss at the
current weights, the batches over all processes, and the work announced and done. Weights move in
place on the device; there is never a second model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

import torch
from torch import Tensor

from clipmerge.checkpoint import Inputs
from clipmerge.errors import MeasureError
from clipmerge.finding import Finding
from clipmerge.images.batches import Batch as Batch
from clipmerge.learning.contrastive_loss import ContrastiveLoss
from clipmerge.learning.resume import LearningState
from clipmerge.learning.sharded_batches import ShardedBatches
from clipmerge.learning.weights import InterpolatedWeights
from clipmerge.learning.zeroshot_loss import Prompts, ZeroShotLoss
from clipmerge.models import ImageTextModel
from clipmerge.models.memory import MicroBatcher
from clipmerge.report.text import text_of

#: Loss of a batch, given prompt features (prompts, projection_dim).
Loss = Callable[[Batch, Tensor], Tensor]
#: Number of prompts that measures backpropagate through the text tower; if there are more,
#: templates are drawn.
PROMPTS_A_GRADIENT = 1024

# Cost of a batch in forward passes: a gradient is about three, a Hessian-vector product about six.
FORWARD, GRADIENT, HESSIAN = 1, 3, 6


class Work:
    """The work of one process."""

    def __init__(self, report: Callable[[float, float], None] | None = None) -> None:
        """Start without announced work."""
        self._report = report
        self._done = self._announced = 0.0

    def announce(self, work: float) -> None:
        """Announce work to come, in images x forward passes."""
        self._announced += work

    def tick(self, cost: float) -> None:
        """Report work done, in images x forward passes."""
        self._done += cost
        if self._report:
            self._report(self._done, self._announced)


def _tell_once(notes: list[Finding], say: Callable[[str], None], finding: Finding) -> None:
    if finding not in notes:
        notes.append(finding)
        say(text_of(finding))


class Objective:
    """The loss at theta(alpha) plus any perturbation, over this process's shard of the batches.

    Constructed whole: measures set the weights in place, add notes and announce work, and nothing
    else changes.

    Attributes:
        inputs: The checkpoints.
        weights: The interpolated weights, with `layers`, `parameters`, `theta_0` and
            `task_vector`.
        criterion: The loss at the current weights, with `prompts`.
        data: The batches, with `batches`, `batch_sizes`, `images` and `context`.
        work: Work announced and done.
        seed: Seed for measures that draw random numbers.
        wants_gradients: Whether the recipe's method ranks entries by mean gradients.
        labelled: Whether the images have labels of their own, not the fine-tuned model's answers.
        unlabelled: Images without labels for measures that learn; ``None`` for none.
        choosers: Images that choose how far to go from what was learned; ``None`` for those of
            `data` that learning holds out.
        learning_state: Saves and restores the state of measures that learn; ``None`` to save
            nothing.
        notes: What the record of the measure should say beside its own notes.
        say: Called with what the user should know.
    """

    def __init__(
        self,
        model: ImageTextModel,
        inputs: Inputs,
        data: ShardedBatches,
        prompts: Prompts,
        *,
        seed: int = 0,
        contrastive: bool = False,
        images_at_once: int | None = None,
        wants_gradients: bool = False,
        labelled: bool = True,
        unlabelled: ShardedBatches | None = None,
        choosers: ShardedBatches | None = None,
        learning_state: LearningState | None = None,
        progress: Callable[[float, float], None] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Load the weights of both ends, and place them on the device of the batches.

        Args:
            model: The model without weights.
            inputs: The checkpoints; the first fine-tuned one is theta_1.
            data: The calibration batches, on this process's device.
            prompts: Class prompts of the model, on the same device.
            seed: Seed for measures that draw random numbers.
            contrastive: Whether the prompts are captions, compared with the images of a batch.
            images_at_once: Images whose activations `gradients` holds at once, with the same
                gradient of the batch; ``None`` for a whole batch.
            wants_gradients: Whether the recipe's method ranks entries by mean gradients.
            labelled: Whether the images have labels of their own.
            unlabelled: Images without labels for measures that learn.
            choosers: Images that choose how far to go from what was learned.
            learning_state: Storage of the state of measures that learn.
            progress: Called with work done and work announced, in images x forward passes.
            say: Called with what the user should know.

        Raises:
            CheckpointError: If a weight is not finite.
            MeasureError: If fine-tuning changed nothing.
        """
        self.inputs: Final = inputs
        self.seed: Final = seed
        self.wants_gradients: Final = wants_gradients
        self.labelled: Final = labelled
        self.unlabelled: Final = unlabelled
        self.choosers: Final = choosers
        self.learning_state: Final = learning_state
        self.say: Final = say
        self.notes: Final[list[Finding]] = []
        # without a reference to this objective, whose tensors would wait for garbage collection
        self._tell: Final = partial(_tell_once, self.notes, say)
        self.work: Final = Work(progress)
        self.data: Final = data
        self.weights: Final = InterpolatedWeights(model, inputs, data.context.device)
        self._images_at_once: Final = images_at_once
        self._micro_batcher: Final = self.micro_batcher(None)
        criterion = ContrastiveLoss if contrastive else ZeroShotLoss
        self.criterion: Final = criterion(
            model, self.weights, prompts, MicroBatcher(None, self._tell)
        )

    def fewer_prompts(self) -> AbstractContextManager[tuple[Finding, ...]]:
        """In this context, use at most `PROMPTS_A_GRADIENT` prompts, or one template per class if
        that is more.

        Returns:
            A context whose value is the notes for the result.
        """
        return self.criterion.fewer_prompts(PROMPTS_A_GRADIENT, self.seed)

    def note(self, finding: Finding) -> None:
        """Tell the user and the record, once."""
        self._tell(finding)

    def micro_batcher(self, max_images: int | None) -> MicroBatcher:
        """Micro-batches of as many images as the user said, or else of ``max_images``; halved where
        memory runs out.
        """
        return MicroBatcher(self._images_at_once or max_images, self._tell)

    # Passes over this process's batches, and their work

    def announce(self, *, forward: float = 0, gradient: float = 0, hessian: float = 0) -> None:
        """Announce all passes over the data before they start, so that their progress and time can
        be shown.

        Args:
            forward: Forward passes.
            gradient: Gradient passes, as by `gradients`.
            hessian: Products with the Hessian, each of all batches.
        """
        passes = forward * FORWARD + gradient * GRADIENT + hessian * HESSIAN
        self.work.announce(passes * sum(len(batch) for batch in self.data.batches))

    @torch.no_grad()
    def losses(self) -> dict[int, float]:
        """Loss of each of this process's batches at the current weights, by batch number; one
        forward pass.
        """
        features = self.criterion.prompt_features()
        values = {}
        for batch in self.data.batches:
            values[batch.number] = float(self.criterion.loss(batch, features))
            self.work.tick(FORWARD * len(batch))
        return values

    def gradients(self, loss_of: Loss | None = None) -> Iterator[tuple[Batch, float]]:
        """Iterate over the batches with each batch's own gradient in ``parameter.grad``; one
        gradient pass.

        The text tower runs forward once for all batches and backward once per batch, from the
        gradient of the prompt features: the same numbers as one joint backward pass.

        Args:
            loss_of: A loss to use instead of `loss`: a scalar, given a batch and the prompt
                features.

        Yields:
            The batch and its loss. Gradients are overwritten by the next batch.

        Raises:
            MeasureError: If a loss is not finite.
        """
        criterion = self.criterion
        # a batch has few of all captions, so only its own are embedded with a graph
        shares_prompts = self.weights.text_changes and not criterion.is_contrastive
        prompts = criterion.prompts.features() if shares_prompts else criterion.prompt_features()
        for batch, value, grad_prompts in self.image_gradients(prompts, loss_of):
            if shares_prompts:
                prompts.backward(grad_prompts, retain_graph=True)  # type: ignore[no-untyped-call]
            elif grad_prompts is not None:
                positions = torch.unique(batch.labels)
                captions = criterion.prompts.features(positions=positions)
                captions.backward(grad_prompts[positions])  # type: ignore[no-untyped-call]
            yield batch, value

    def image_gradients(
        self,
        prompts: Tensor,
        loss_of: Loss | None = None,
        micro_batcher: MicroBatcher | None = None,
    ) -> Iterator[tuple[Batch, float, Tensor | None]]:
        """The same as `gradients` for given prompt features, without the text tower's gradient.

        Yields:
            The batch, its loss, and the loss's gradient of the prompt features; ``None`` if the
            text tower stays.
        """
        for batch in self.data.batches:
            features = prompts.detach().requires_grad_(self.weights.text_changes)

            def attempt(
                max_images: int, batch: Batch = batch, features: Tensor = features
            ) -> float:
                self.weights.clear_gradients()
                features.grad = None
                value = 0.0
                whole = loss_of is not None or self.criterion.is_contrastive
                for piece in [batch] if whole else batch.pieces(max_images):
                    loss = (
                        loss_of(piece, features)
                        if loss_of
                        else self.criterion.loss(piece, features, at_once=max_images)
                    )
                    loss = loss * (len(piece) / len(batch))
                    loss.backward()  # type: ignore[no-untyped-call]
                    value += float(loss.detach())
                return value

            value = (micro_batcher or self._micro_batcher).run(len(batch), attempt)
            if not value < float("inf"):
                raise MeasureError(
                    f"the loss of calibration batch {batch.number} is {value}; check the"
                    " checkpoints"
                )
            yield batch, value, features.grad
            self.work.tick(GRADIENT * len(batch))
        self.weights.clear_gradients()

    def mean_of_pieces(
        self, batch: Batch, values_of: Callable[[Batch], list[float]]
    ) -> list[float]:
        """Compute values that are means over a batch's images, from pieces of it where memory runs
        out.
        """

        def attempt(max_images: int) -> list[float]:
            pieces = [batch] if self.criterion.is_contrastive else batch.pieces(max_images)
            weighted = [
                [len(piece) / len(batch) * value for value in values_of(piece)] for piece in pieces
            ]
            return [sum(column) for column in zip(*weighted, strict=True)]

        return self._micro_batcher.run(len(batch), attempt)
