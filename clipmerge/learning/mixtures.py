"""Mixtures of several fine-tuned checkpoints, evaluated on the calibration images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipmerge.errors import MeasureError
from clipmerge.learning.objective import FORWARD, Objective
from clipmerge.merging.formula import unchanged_input, weighted_change
from clipmerge.planning.measurements import Mixture


@torch.no_grad()
def try_mixture(objective: Objective, weights: Sequence[float]) -> Mixture:
    """Evaluate theta_0 + sum_i weights_i * (theta_i - theta_0), as a merge would write it; one
    forward pass.

    The model stays at the mixture, including layers that only a further checkpoint changed: do not
    use `set_alpha` afterwards.
    """
    inputs = objective.inputs
    # a further checkpoint may change a text tower that the first one does not
    objective.weights.invalidate_caches(
        text=objective.weights.text_changes or len(objective.inputs.finetuned) > 1
    )
    for name, parameter in objective.weights.parameters.items():
        if inputs.merges(name):
            finetuned = [
                inputs.theta_1(name, which=which)
                for which in range(len(objective.inputs.finetuned))
            ]
            theta_0 = inputs.theta_0(name)
            parameter.copy_(mixed(theta_0, finetuned, 1.0, tuple(weights)).to(theta_0.dtype))
    features = objective.criterion.prompt_features()
    results = {}
    for batch in objective.data.batches:
        logits, labels = objective.criterion.batch_scores(batch, features)
        right = int((logits.argmax(dim=-1) == labels).sum()) / len(batch)
        results[batch.number] = (float(objective.criterion.mean_loss(logits, labels)), right)
        objective.work.tick(FORWARD * len(batch))
    rows = objective.data.by_batch(results)
    loss, accuracy = (objective.data.mean(list(values)) for values in zip(*rows, strict=True))
    if not loss < float("inf"):
        listed = ", ".join(f"{weight:g}" for weight in weights)
        raise MeasureError(
            f"the calibration loss at weights {listed} is {loss}; check that the checkpoints work"
        )
    return Mixture(weights=tuple(weights), loss=loss, accuracy=accuracy)


def mixed(
    theta_0: Tensor, finetuned: Sequence[Tensor], alpha: float, weights: Sequence[float]
) -> Tensor:
    """A point between the ends, as a merge computes it but not yet rounded."""
    wide = (
        torch.float64
        if torch.float64 in {theta_0.dtype, *(t.dtype for t in finetuned)}
        else (torch.float32)
    )
    base, *ends = (tensor.to(wide) for tensor in (theta_0, *finetuned))
    unchanged: Tensor | None = unchanged_input(base, ends, alpha, weights)
    if unchanged is not None:
        return unchanged
    change: Tensor = weighted_change(torch, base, ends, alpha=alpha, weights=weights)
    return change.add_(base)
