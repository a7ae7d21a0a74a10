"""Add the task vectors of several fine-tuned checkpoints."""

from __future__ import annotations

from clipmerge.methods import Decision, Task
from clipmerge.plugins import Alpha


def task_arithmetic(task: Task, *, alpha: Alpha = 0.3) -> Decision:
    """Add the sum of the task vectors, times alpha, to the zero-shot weights. If alpha is one over
    their number, this is the uniform soup.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of the sum.

    Returns:
        One coefficient for every layer.

    Source:
        Task arithmetic, Ilharco et al. 2022, arXiv:2212.04089.
    """
    task.need_several_finetuned("it is 'wise-ft'")
    count = len(task.inputs.finetuned)
    return Decision(task.everywhere(alpha), weights=(1.0,) * count)
