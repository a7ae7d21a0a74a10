"""Learn coefficients together with sparse masks for the straggler layers."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.linalg import vector_norm

from clipmerge.layers import block_of
from clipmerge.learning.choose import learn
from clipmerge.learning.interpolate import Coefficients
from clipmerge.learning.objective import Objective
from clipmerge.learning.train import LearningOptions
from clipmerge.measures._statistics import by_layer, statistic
from clipmerge.measures.learned_coefficients import learned_measurements
from clipmerge.planning.measurements import Measurements, Statistic
from clipmerge.plugins import Count, Density, Positive, Share, with_options_of
from clipmerge.types import Names


@dataclass(frozen=True, kw_only=True)
class SparseOptions(LearningOptions):
    """How `learned_sparse` learns: as `LearningOptions`, in fewer and larger steps.

    Attributes:
        granularity: Unit that has its own coefficient; of one coefficient none can be dropped.
        share: Share of the blocks' sharpness that stragglers hold.
        density: Share of a straggler parameter's coefficients that is kept.
    """

    granularity: Literal["channel", "entry"] = "entry"
    share: Share = 0.15
    density: Density = 0.5
    steps: Count = 200
    batch_size: Count = 64
    num_strong: Count = 64
    lr: Positive = 0.04


@with_options_of(SparseOptions)
def learned_sparse(objective: Objective, **options: Any) -> Measurements:
    """Learn coefficients; straggler layers keep only a share of them, and all their other weights
    stay zero-shot.

    Stragglers are found at the starting point of learning, among the layers of the transformer
    blocks, by their sharpness there: ||gradient|| times ||change||. Each of their parameters keeps
    the coefficients with the largest scores (straight-through). All others are zero, bit for bit
    zero-shot, but their scores keep following their gradients, so an entry can return. If the
    held-out images choose to go on towards fine-tuned, the same share of the zeros returns.

    Args:
        objective: Calibration loss; left at the chosen coefficients.
        **options: See `SparseOptions`.

    Returns:
        As `learned_coefficients`, plus the statistics ``sharpness`` in nats, ``sharpness_share`` of
        the total, and ``straggler``, 1 or 0.

    Raises:
        ClipmergeError: If a loss is not finite.

    Source:
        Inspired by Abdollahpoorrostam 2024, arXiv:2410.16476; straight-through: Bengio et al. 2013,
        arXiv:1308.3432. The definitions are ours.
    """
    chosen = SparseOptions(**options)
    sharpness = Statistic(name="sharpness", values={})
    notes: Names = ()
    stragglers: Names = ()

    def find() -> tuple[list[str], float]:
        """Find the stragglers where learning starts: their parameters, and the density."""
        nonlocal sharpness, notes, stragglers
        sharpness, notes = _measure_sharpness(objective)
        stragglers = sharpest(block_sharpness(sharpness), chosen.share)
        names = [name for layer in stragglers for name in objective.path.layers[layer]]
        return names, chosen.density

    coefficients = Coefficients(objective.path, chosen.granularity, chosen.start)
    learned = learn(objective, coefficients, chosen, find_sparse=find)
    measurements = learned_measurements("learned-sparse", objective, coefficients, learned)
    values = sharpness.values
    total = sum(values.values()) or 1.0
    share = Statistic(
        name="sharpness_share",
        values={layer: value / total for layer, value in values.items()},
        title="share of the sharpness",
        about="the layer's share of all layers' sharpness.",
    )
    straggler = Statistic(
        name="straggler",
        values={layer: float(layer in stragglers) for layer in values},
        title="straggler",
        about="1 if the layer was made sparse, else 0.",
    )
    return measurements.replace(
        statistics=(*measurements.statistics, sharpness, share, straggler),
        notes=(*measurements.notes, *notes),
    )


def _measure_sharpness(objective: Objective) -> tuple[Statistic, Names]:
    """Measure the sharpness of every layer at the current weights, with notes about it."""
    objective.announce(gradient=1)
    with objective.fewer_prompts() as notes:
        sharpness = layer_sharpness(objective)
    measured = statistic(
        objective,
        "sharpness",
        sharpness,
        unit="nats",
        title="sharpness",
        about=(
            "largest first-order rise of the loss when this layer alone moves as far as"
            " fine-tuning moved it."
        ),
    )
    return measured, tuple(f"sharpness {note}" for note in notes)


def layer_sharpness(objective: Objective) -> dict[str, tuple[float, ...]]:
    """Estimate how much a change of each layer can raise the loss at the current weights, in one
    gradient pass.

    For layer l and batch B it is ||gradient_l of L_B|| * ||task_vector_l||: to first order the
    largest rise of the loss if the layer alone moves as far as fine-tuning moved it, in any
    direction.
    """
    path = objective.path
    layers = path.layers.values()
    rows: dict[int, list[float]] = {}
    radii = [_norm(map(path.delta, names)) for names in layers]
    for batch, _ in objective.gradients():
        slopes = [_norm(map(path.gradient, names)) for names in layers]
        rows[batch.number] = list(map(operator.mul, slopes, radii))
    return by_layer(objective, rows)


def block_sharpness(sharpness: Statistic) -> dict[str, float]:
    """The sharpness of the blocks' layers, among which stragglers are chosen.

    A step sees too few rows of an embedding table to learn its mask, and other layers are small.
    """
    return {layer: value for layer, value in sharpness.values.items() if block_of(layer)}


def sharpest(sharpness: dict[str, float], share: float) -> Names:
    """Choose the fewest layers, sharpest first, that together hold a share of the total; at least
    one.

    Example:
        >>> sharpest({"a": 1.0, "b": 6.0, "c": 3.0}, 0.65), sharpest({"a": 1.0}, 1.0)
        (('b', 'c'), ('a',))
    """
    total = sum(sharpness.values())
    chosen: list[str] = []
    for layer in sorted(sharpness, key=sharpness.__getitem__, reverse=True):
        if chosen and sum(sharpness[previous] for previous in chosen) >= share * total:
            break
        chosen.append(layer)
    return tuple(layer for layer in sharpness if layer in chosen)


def _norm(tensors: Iterable[Tensor]) -> float:
    squares = [float(vector_norm(tensor)) ** 2 for tensor in tensors]
    return float(sum(squares) ** 0.5)
