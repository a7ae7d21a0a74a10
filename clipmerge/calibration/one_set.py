"""Interpolate some layers alone, while all others stay where they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from clipmerge.calibration.objective import Objective


@torch.no_grad()
def place(objective: Objective, layers: Iterable[str], alpha: float) -> None:
    """Set some layers to theta_0 + alpha * task_vector, in place; the others stay."""
    moved = list(layers)
    for layer in moved:
        for name in objective.path.layers[layer]:
            torch.add(
                objective.path.theta_0[name],
                objective.path.task_vector[name],
                alpha=alpha,
                out=objective.path.parameters[name].data,
            )
    objective.path.forget(text=any(layer.startswith("text.") for layer in moved))


def instabilities(
    objective: Objective, layers: Sequence[str], points: int, finetuned: dict[int, float]
) -> dict[int, float]:
    """Compute max over alpha of L(alpha) - (L(0) + L(1)) / 2, where some layers alone go from zero-shot to fine-tuned.

    The other layers are fine-tuned. It costs ``points`` + 1 forward passes.
    """
    tried = []
    for step in range(points + 1):
        place(objective, layers, step / (points + 1))
        tried.append(objective.losses())
    place(objective, layers, 1.0)
    return {
        number: max(losses[number] for losses in tried[1:]) - (tried[0][number] + loss) / 2
        for number, loss in finetuned.items()
    }
