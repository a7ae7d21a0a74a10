"""The work of a prompt beside that of an image, counted in one forward pass of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipmerge.calibration.tangents import calls_of

if TYPE_CHECKING:
    from clipmerge.calibration.objective import Objective


@dataclass(frozen=True)
class TowerCost:
    """What a forward pass calls, and what it costs.

    Attributes:
        called: Modules without children that are called for an image or a prompt.
        prompt: Work of a prompt, in forward passes of an image; the same in every process.
    """

    called: set[torch.nn.Module]
    prompt: float


@torch.no_grad()
def tower_cost(objective: Objective) -> TowerCost:
    """Send one image and one prompt through the model, and count multiplications in its matrices.

    Args:
        objective: Calibration loss.
    """
    called: set[torch.nn.Module] = set()
    work = {"image": 0.0, "prompt": 0.0}
    now = "image"

    def seen(module: torch.nn.Module, output: Any) -> None:
        called.add(module)
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and isinstance(output, Tensor):
            work[now] += output.numel() * (module.weight.numel() // module.weight.shape[0])

    with calls_of(objective.module, seen):
        for batch in objective.batches[:1]:
            objective.embed(batch.pixels[:1])
        now = "prompt"
        objective.prompts.features(places=torch.zeros(1, dtype=torch.int64, device=objective.accelerator.device))
    # a process without a batch cannot tell
    prompt = max(objective.gather([work["prompt"] / work["image"] if work["image"] else 0.0]))
    return TowerCost(called, prompt or 1.0)
