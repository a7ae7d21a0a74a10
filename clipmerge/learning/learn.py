"""Learn coefficients, and let images that learning never saw choose the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from clipmerge.images.batches import Batch
from clipmerge.images.split import held_out_positions
from clipmerge.learning.choose import choose
from clipmerge.learning.interpolate import DEFAULT_ALPHA, Coefficients
from clipmerge.learning.objective import Objective
from clipmerge.learning.train import Training, train
from clipmerge.planning.measurements import HeldBackChoice


@dataclass(frozen=True)
class Learned:
    """The result of learning.

    Attributes:
        trace: Mean cross-entropy, accuracy and mean distillation loss of each step.
        choice: The choice of the held-out images; ``None`` if none are held out.
    """

    trace: list[list[float]]
    choice: HeldBackChoice | None = None


def learn(
    objective: Objective,
    coefficients: Coefficients,
    training: Training,
    *,
    start: float = DEFAULT_ALPHA,
    val_share: float = 0.0,
    max_loss: float = 100.0,
    find_sparse: Callable[[], tuple[Sequence[str], float]] | None = None,
) -> Learned:
    """Learn coefficients, and move them to the choice of the held-out images.

    Args:
        objective: Left at the chosen coefficients.
        coefficients: Changed in place.
        training: How to learn.
        start: Coefficient where learning starts.
        val_share: Share of the images that learning does not see and that choose.
        max_loss: Points of accuracy on these that may be lost against the fine-tuned model.
        find_sparse: Called at the weights where learning starts; returns the parameters to make
            sparse and their density.
    """
    if find_sparse is not None:
        objective.path.set_alpha(start)
        coefficients.make_sparse(*find_sparse(), objective.seed)
    images, val = split(objective, val_share)
    trace = train(objective, coefficients, images, training)
    choice = None
    if val is not None:
        choice = choose(
            objective, coefficients, val, images, training, start=start, max_loss=max_loss
        )
        coefficients.place()
        last = trace[-max(1, len(trace) // 10) :]  # the last steps, of little rate
        accuracy = sum(losses[1] for losses in last) / max(1, len(last))
        choice = choice.replace(train_accuracy=accuracy if last else None)
    return Learned(trace, choice)


def split(objective: Objective, share: float) -> tuple[Batch, Batch | None]:
    """Images to learn from, and those that choose; ``None`` for none."""
    if objective.val is not None:
        return objective.images, objective.val
    labels = objective.images.labels.tolist()
    held_out = held_out_positions(labels, share, objective.seed)
    if not held_out:
        return objective.images, None
    kept = sorted(set(range(len(labels))) - set(held_out))
    train_images, val = (
        Batch(0, objective.images.pixels[at], objective.images.labels[at])
        for at in (torch.tensor(kept), torch.tensor(held_out))
    )
    return train_images, val
