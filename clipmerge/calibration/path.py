"""Both ends of the path on the device: where it starts, and how far it goes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clipmerge.checkpoint import Inputs
from clipmerge.errors import MeasureError


def both_ends(
    parameters: Mapping[str, torch.nn.Parameter], inputs: Inputs, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take the zero-shot weights and the task vector of what fine-tuning changed.

    Args:
        parameters: Name to parameter, holding theta_0; those that did not change are frozen.
        inputs: The checkpoints; the first fine-tuned one is theta_1.
        device: Where to.

    Returns:
        Name to theta_0 and to theta_1 - theta_0, float32, for the changed parameters.

    Raises:
        MeasureError: If a weight is not finite, or fine-tuning changed nothing.
    """
    start: dict[str, Tensor] = {}
    change: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        parameter.requires_grad_(False)
        theta_0 = parameter.detach()
        _require_finite(theta_0, name, inputs.zeroshot.source)
        if not inputs.merges(name):
            continue
        task_vector = inputs.theta_1(name).to(device=device, dtype=torch.float32) - theta_0
        _require_finite(task_vector, name, inputs.finetuned[0].source)
        if bool(task_vector.any()):
            start[name] = theta_0.clone()
            change[name] = task_vector
            parameter.requires_grad_(True)
    if not change:
        raise MeasureError(
            f"{inputs.zeroshot.source} and {inputs.finetuned[0].source} hold the same weights; there is nothing to "
            "measure or to merge"
        )
    return start, change


def _require_finite(tensor: Tensor, name: str, source: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise MeasureError(f"{source}: tensor {name} holds NaN or Inf; the checkpoint is broken")
