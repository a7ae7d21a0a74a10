"""Average the fine-tuned checkpoints that improve each other."""

from __future__ import annotations

import numpy as np

from clipmerge.methods import Decision, Task
from clipmerge.plugins import Alpha


def greedy_soup(task: Task, *, alpha: Alpha = 1.0) -> Decision:
    """Average the checkpoints that the measure kept in the soup.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Share of the way from zero-shot to the soup; 1 is the soup itself.

    Returns:
        One coefficient for every layer; checkpoints outside the soup have weight 0.

    Raises:
        UsageError: If the measure did not try soups.

    Source:
        Model soups, Wortsman et al. 2022, arXiv:2203.05482.
    """
    task.need_several_finetuned("there is no choice: use 'wise-ft'")
    measurements = task.need_measured(
        "averages tried one by one",
        "soup-accuracy",
        lambda found: found.measure == "soup-accuracy",
    )
    # The last soup is the best mixture: a soup never gets worse while it grows, and a rejected
    # average is worse than the soup of that time. Of equal mixtures, it is the largest.
    soup = max(
        measurements.mixtures, key=lambda tried: (tried.accuracy, np.count_nonzero(tried.weights))
    )
    chosen = []
    for checkpoint, weight in zip(task.inputs.finetuned, soup.weights, strict=True):
        if weight > 0:
            chosen.append(checkpoint.source)
    return Decision(
        task.everywhere(alpha),
        found=(
            f"{len(chosen)} of {len(soup.weights)} fine-tuned checkpoints are in the greedy soup"
            f" ({', '.join(chosen)}), with accuracy {soup.accuracy:.1%} on the calibration images"
        ),
        weights=soup.weights,
    )
