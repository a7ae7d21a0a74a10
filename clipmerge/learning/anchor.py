"""The point of the straight path whose image features are held where the zero-shot model does not
know the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clipmerge.learning.objective import FORWARD, Objective
from clipmerge.models.precision import Precision, passes

#: WiSE-FT's alpha where nothing is tuned (Wortsman et al. 2022).
UNTUNED = 0.5
#: Points that can be the anchor, and the share of the zero-shot features' effective rank that those
#: beyond 0.5 keep.
ANCHORS = tuple(tenth / 10 for tenth in range(5, 11))
KEPT_RANK = 2 / 3
#: Standard errors beyond which a difference is sure, in a one-sided test at 95%.
ONE_SIDED = 1.645


@dataclass(frozen=True)
class Anchor:
    """The anchor.

    Attributes:
        alpha: Its place on the straight path.
        finetuned_rank: Effective rank of the fine-tuned model's features, as a share of the
            zero-shot model's.
    """

    alpha: float
    finetuned_rank: float


@dataclass(frozen=True)
class PathPoint:
    """A point of the path: mean loss in nats, accuracy, features' effective rank, and own images'
    losses, (images,).
    """

    loss: float
    accuracy: float
    rank: float
    losses: Tensor


def find_anchor(objective: Objective, max_loss: float) -> Anchor:
    """Find the least alpha from 0.5 up whose features keep two thirds of their effective rank, at
    no proven loss.

    Its loss is not surely above the lowest, in a one-sided test at 95%: where images cannot tell,
    the lower alpha is the more robust. Features that fall into a few directions, those of the
    target's classes, are a trace of fine-tuning that has harmed the model: then the anchor is the
    lowest alpha. None loses more than ``max_loss`` points of accuracy.
    """
    objective.work.announce(
        FORWARD * (1 + len(ANCHORS)) * sum(len(batch) for batch in objective.shares.batches)
    )
    zeroshot = _point(objective, 0.0).rank
    points = {alpha: _point(objective, alpha) for alpha in ANCHORS}
    least = points[1.0].accuracy - max_loss / 100 - 1e-9
    accurate = {alpha: point for alpha, point in points.items() if point.accuracy >= least}
    unharmed = {
        alpha: point for alpha, point in accurate.items() if point.rank >= KEPT_RANK * zeroshot
    }
    alpha = min(_not_worse(objective, unharmed) if unharmed else accurate)
    return Anchor(alpha, points[1.0].rank / max(zeroshot, 1e-9))


def _not_worse(objective: Objective, points: Mapping[float, PathPoint]) -> list[float]:
    """The alphas whose loss, paired by image over all processes, is not surely above the lowest."""
    best = min(points.values(), key=lambda point: point.loss)
    above = torch.stack([point.losses - best.losses for point in points.values()])
    sums = torch.stack([above.sum(1), above.square().sum(1)])
    objective.shares.all_reduce_(sums)
    mean, square = sums.cpu().double() / objective.shares.images
    error = ((square - mean.square()).clamp_min(0) / max(objective.shares.images - 1, 1)).sqrt()
    return [alpha for alpha, sure in zip(points, mean > ONE_SIDED * error, strict=True) if not sure]


def finetuned_rank(objective: Objective, precision: Precision) -> float:
    """Effective rank of the fine-tuned model's features, as a share of the zero-shot model's, in
    this precision.
    """
    objective.work.announce(FORWARD * 2 * sum(len(batch) for batch in objective.shares.batches))
    return _point(objective, 1.0, precision).rank / max(
        _point(objective, 0.0, precision).rank, 1e-9
    )


@torch.no_grad()
def _point(objective: Objective, alpha: float, precision: Precision = "float32") -> PathPoint:
    """Evaluate a point on the images of all processes."""
    objective.path.move_to(alpha)
    prompts = objective.criterion.prompt_features()
    width = prompts.shape[-1]
    # sums: the loss and the number of right answers, the features, and their products
    sums, losses = torch.zeros(width + 2, width, device=prompts.device), list[Tensor]()
    for batch in objective.shares.batches:
        with passes(batch.pixels.device, precision):
            features = objective.criterion.embed(batch.pixels).float()
        logits = objective.criterion.logits(batch, prompts, features)
        losses.append(torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none"))
        sums[0, 0] += losses[-1].sum()
        sums[0, 1] += (logits.argmax(1) == batch.labels).sum()
        sums[1] += features.sum(0)
        sums[2:] += features.T @ features
        objective.work.tick(FORWARD * len(batch))
    objective.shares.all_reduce_(sums)
    sums = sums.cpu().double() / objective.shares.images
    rank = effective_rank(sums[2:] - sums[1].outer(sums[1]))
    return PathPoint(float(sums[0, 0]), float(sums[0, 1]), rank, torch.cat(losses))


def effective_rank(covariance: Tensor) -> float:
    """Participation ratio of a covariance's eigenvalues v, (sum v)^2 / sum v^2: the number of them
    if all are equal.

    Example:
        >>> effective_rank(torch.diag(torch.tensor([2.0, 2.0, 0.0])))
        2.0
    """
    return float(covariance.trace().square() / covariance.square().sum().clamp_min(1e-30))
