"""Weight each entry by how much the predictions of each checkpoint depend on it."""

from __future__ import annotations

import torch
from torch import Tensor

from clipmerge.methods import Decision, Task
from clipmerge.plugins import NonNegative, Share


def fisher(task: Task, *, alpha: Share = 0.5, floor: NonNegative = 1e-3) -> Decision:
    """Weight both checkpoints entry by entry by the diagonal of their Fisher information.

    With F_0 and F_1 at the zero-shot and the fine-tuned end, the merged entry is ((1 - alpha) F_0
    theta_0 + alpha F_1 theta_1) / ((1 - alpha) F_0 + alpha F_1), which is a coefficient of alpha
    F_1 / ((1 - alpha) F_0 + alpha F_1). F_1 is scaled to the same sum over the model as F_0. The
    reason is that a fine-tuned model is more confident, so its gradients are smaller everywhere:
    without the scaling, nearly all entries would stay zero-shot.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Weight of the fine-tuned checkpoint; 0.5 lets the Fisher information alone decide.
        floor: Smallest Fisher information used, as a share of the parameter's mean over both ends.
            If both F_0 and F_1 of an entry are below it, alpha alone decides.

    Returns:
        One coefficient per entry.

    Raises:
        UsageError: If the Fisher information was not measured.

    Source:
        Fisher merging, Matena and Raffel 2022, arXiv:2111.09832.
    """
    tensors = task.need_measured(
        "the Fisher information", "fisher", lambda found: "fisher_finetuned" in found.tensors
    ).tensors
    first, second = tensors["fisher_zeroshot"], tensors["fisher_finetuned"]
    ours, theirs = (
        sum(float(value.double().sum()) for value in end.values()) for end in (first, second)
    )
    scale = ours / theirs if ours * theirs > 0 else 1.0
    coefficients = {}
    for name, value in first.items():
        f_1 = second[name].double() * scale
        coefficients[name] = _fisher_coefficients(value.double(), f_1, alpha, floor)
    return Decision(task.everywhere(alpha), coefficients=coefficients)


def _fisher_coefficients(f_0: Tensor, f_1: Tensor, alpha: float, floor: float) -> Tensor:
    """Compute a parameter's coefficients from its Fisher information at both ends."""
    least = floor * float((f_0.mean() + f_1.mean()) / 2)
    ours = (1 - alpha) * f_0.clamp(min=least)
    theirs = alpha * f_1.clamp(min=least)
    total = ours + theirs
    share = theirs / total.clamp(min=torch.finfo(total.dtype).tiny)
    return torch.where(total > 0, share, alpha).float()
