"""The point of the straight path whose image features are held where the zero-shot model does not know the target."""

from __future__ import annotations

import torch
from torch import Tensor

from clipmerge.calibration.objective import FORWARD, Objective

#: WiSE-FT's alpha where nothing is tuned (Wortsman et al. 2022).
UNTUNED = 0.5
#: Points that can be the anchor, and the share of the zero-shot features' effective rank that those beyond 0.5 keep.
ANCHORS = tuple(tenth / 10 for tenth in range(5, 11))
KEPT_RANK = 2 / 3


def find_anchor(objective: Objective) -> float:
    """The alpha with the lowest loss among those from 0.5 up whose features keep two thirds of their effective rank.

    Features that fall into a few directions, those of the target's classes, are a trace of fine-tuning that has harmed
    the model: then the anchor is 0.5. Beyond 0.5 there is little to mend.
    """
    objective.work.announce(FORWARD * (1 + len(ANCHORS)) * sum(len(batch) for batch in objective.shares.batches))
    _, zeroshot = _loss_and_rank(objective, 0.0)
    points = {alpha: _loss_and_rank(objective, alpha) for alpha in ANCHORS}
    kept = {alpha: rank / max(zeroshot, 1e-9) for alpha, (_, rank) in points.items()}
    anchor = min((a for a in points if a == UNTUNED or kept[a] >= KEPT_RANK), key=lambda alpha: points[alpha][0])
    objective.note(
        f"the zero-shot model does not know the target; fine-tuning leaves {kept[1.0]:.0%} of its features' effective "
        f"rank, and alpha {anchor:g} of the straight path {kept[anchor]:.0%}"
    )
    return anchor


@torch.no_grad()
def _loss_and_rank(objective: Objective, alpha: float) -> tuple[float, float]:
    """Mean loss of the calibration images at alpha, in nats, and the `effective_rank` of their features."""
    objective.path.move_to(alpha)
    prompts = objective.criterion.prompt_features()
    width = prompts.shape[-1]
    # sums over the images of all processes: the loss, the features, and their products
    sums = torch.zeros(width + 2, width, device=prompts.device)
    for batch in objective.shares.batches:
        features = objective.criterion.embed(batch.pixels).float()
        sums[0, 0] += len(batch) * objective.criterion.loss(batch, prompts, features)
        sums[1] += features.sum(0)
        sums[2:] += features.T @ features
        objective.work.tick(FORWARD * len(batch))
    objective.shares.add_up(sums)
    sums = sums.cpu().double() / objective.shares.images
    return float(sums[0, 0]), effective_rank(sums[2:] - sums[1].outer(sums[1]))


def effective_rank(covariance: Tensor) -> float:
    """Participation ratio of a covariance's eigenvalues v, (sum v)^2 / sum v^2: the number of them if all are equal.

    Example:
        >>> effective_rank(torch.diag(torch.tensor([2.0, 2.0, 0.0])))
        2.0
    """
    return float(covariance.trace().square() / covariance.square().sum().clamp_min(1e-30))
