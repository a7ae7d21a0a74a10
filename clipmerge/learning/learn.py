"""Learn coefficients, and let images that learning never saw choose the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from clipmerge.images.batches import Batch
from clipmerge.learning.choose import choose
from clipmerge.learning.interpolate import DEFAULT_ALPHA, Coefficients
from clipmerge.learning.objective import Objective
from clipmerge.learning.train import Training, train
from clipmerge.planning.measurements import HeldBackChoice

#: With fewer images than this nothing is held out: neither part would be informative.
MIN_IMAGES = 8


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
    labels = objective.images.labels.tolist()
    held_out = held_out_positions(labels, share, objective.seed)
    if not held_out:
        return objective.images, None
    kept = sorted(set(range(len(labels))) - set(held_out))
    train_images, val = (
        Batch(0, objective.images.pixels[at], objective.images.labels[at])
        for at in (torch.tensor(kept), torch.tensor(held_out))
    )
    return train_images, val if objective.val is None else objective.val


def held_out_positions(labels: Sequence[int], share: float, seed: int) -> list[int]:
    """Choose images to hold out, ascending: equally many per class if possible, more than half of a
    class only after half of all, and its last one at the very last.

    Example:
        >>> labels = [0] * 4 + [1] * 4
        >>> [labels[position] for position in held_out_positions(labels, 0.25, seed=0)]
        [0, 1]
    """
    if len(labels) < MIN_IMAGES or share == 0:
        return []
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    images = Counter(labels)
    counts = Counter[int]()
    ranked = []
    for index, position in enumerate(order):
        label = labels[position]
        counts[label] += 1
        given, all_of_class = counts[label], images[label]
        rank = (given == all_of_class, 2 * given > all_of_class, given)
        ranked.append((*rank, index, position))
    count = min(max(1, round(share * len(labels))), len(labels) - 1)
    return sorted(position for *_, position in sorted(ranked)[:count])
