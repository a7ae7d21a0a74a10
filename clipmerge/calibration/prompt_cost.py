"""The work of a prompt relative to that of an image, counted in one forward pass of each."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from clipmerge.calibration.loss import CalibrationLoss
from clipmerge.calibration.shares import Shares


@torch.no_grad()
def prompt_cost(criterion: CalibrationLoss, shares: Shares) -> float:
    """Send one image and one prompt through the model, and count multiplications in its matrices.

    Returns the work of a prompt, in forward passes of an image; the same in every process.
    """
    work = [0.0]

    def count(module: Any, _given: Any, output: Tensor) -> None:
        work[-1] += output.numel() * (module.weight.numel() // module.weight.shape[0])

    with ExitStack() as hooks:
        for module in criterion.model.module.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                hooks.callback(module.register_forward_hook(count).remove)
        for batch in shares.batches[:1]:
            criterion.embed(batch.pixels[:1])
        work.append(0.0)
        criterion.prompts.features(places=torch.zeros(1, dtype=torch.int64, device=shares.accelerator.device))
    image, prompt = work
    # a process without a batch cannot measure it
    return max(shares.gather([prompt / image if image else 0.0])) or 1.0
