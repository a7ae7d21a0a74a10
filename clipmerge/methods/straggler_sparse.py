"""Use learned coefficients, of which straggler layers keep only a share."""

from __future__ import annotations

from dataclasses import replace

from clipmerge.errors import counted
from clipmerge.methods import Decision, Task
from clipmerge.methods.learned import learned
from clipmerge.plugins import Share


def straggler_sparse(task: Task, *, alpha: Share = 1.0) -> Decision:
    """Merge with learned coefficients, and name the layers that were made sparse.

    Args:
        task: The checkpoints, and the measurements.
        alpha: Factor of every coefficient: 1 uses the learned coefficients, 0 is zero-shot.

    Returns:
        The coefficients, in the granularity in which they were learned. Those dropped in stragglers
        are zero, which gives the zero-shot model's bytes. If the merge uses nothing that was
        learned, no layer is named.

    Source:
        Inspired by Abdollahpoorrostam 2024, arXiv:2410.16476; the definitions are ours.
    """
    measurements = task.need_measured(
        "layers that learning made sparse",
        "learned-sparse",
        lambda found: (
            found.coefficients and any(one.name == "straggler" for one in found.statistics)
        ),
    )
    known = {statistic.name: statistic.values for statistic in measurements.statistics}
    decision = learned(task, alpha=alpha)
    chose_finetuned = measurements.choice is not None and measurements.choice.backoff == 1
    if chose_finetuned or not any(measurements.trace.values()):
        return decision  # no entry was dropped
    stragglers = tuple(layer for layer in task.layers if known["straggler"].get(layer))
    shares = known["sharpness_share"]
    reasons = {
        layer: f"straggler with {shares[layer]:.0%} of the sharpness" for layer in stragglers
    }
    entries = sum(task.sizes[layer] for layer in stragglers)
    dropped = sum(task.sizes[layer] * known["at_zero"][layer] for layer in stragglers)
    found = "no straggler layers found"
    if stragglers:
        found = (
            f"{counted(len(stragglers), 'straggler', 'stragglers')} of {len(shares)} layers;"
            f" learning put {dropped / max(1, entries):.0%} of their weights back to zero-shot"
        )
    return replace(
        decision,
        found=f"{found}; {decision.found}",
        reasons=decision.reasons | reasons,
        stragglers=stragglers,
        straggler_statistic="sharpness",
        straggler_scores={layer: {"share": share} for layer, share in shares.items()},
    )
