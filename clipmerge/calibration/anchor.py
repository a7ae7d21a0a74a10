"""The point of the straight path whose image features are held where the zero-shot model does not know the target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipmerge.calibration.objective import FORWARD, Objective
from clipmerge.models.precision import Precision, passes

#: WiSE-FT's alpha where nothing is tuned (Wortsman et al. 2022).
UNTUNED = 0.5
#: Points that can be the anchor, and the share of the zero-shot features' effective rank that those beyond 0.5 keep.
ANCHORS = tuple(tenth / 10 for tenth in range(5, 11))
KEPT_RANK = 2 / 3


@dataclass(frozen=True)
class Anchor:
    """The anchor.

    Attributes:
        alpha: Its place on the straight path.
        harmed: Whether fine-tuning has harmed the features there, so that there is something to mend.
        finetuned_rank: Effective rank of the fine-tuned model's features, as a share of the zero-shot model's.
    """

    alpha: float
    harmed: bool
    finetuned_rank: float


@dataclass(frozen=True)
class PathPoint:
    """A point of the path on all calibration images: mean loss in nats, accuracy, and the features' effective rank."""

    loss: float
    accuracy: float
    rank: float


def find_anchor(objective: Objective, max_loss: float) -> Anchor:
    """Find the alpha with the lowest loss from 0.5 up whose features keep two thirds of their effective rank.

    Features that fall into a few directions, those of the target's classes, are a trace of fine-tuning that has harmed
    the model: then the anchor is the lowest alpha. None loses more than ``max_loss`` points of accuracy.
    """
    objective.work.announce(FORWARD * (1 + len(ANCHORS)) * sum(len(batch) for batch in objective.shares.batches))
    zeroshot = _point(objective, 0.0).rank
    points = {alpha: _point(objective, alpha) for alpha in ANCHORS}
    least = points[1.0].accuracy - max_loss / 100 - 1e-9
    accurate = {alpha: point for alpha, point in points.items() if point.accuracy >= least}
    unharmed = {alpha: point.loss for alpha, point in accurate.items() if point.rank >= KEPT_RANK * zeroshot}
    alpha = min(unharmed, key=unharmed.__getitem__) if unharmed else min(accurate)
    return Anchor(alpha, not unharmed, points[1.0].rank / max(zeroshot, 1e-9))


def finetuned_rank(objective: Objective, precision: Precision) -> float:
    """Effective rank of the fine-tuned model's features, as a share of the zero-shot model's, in this precision."""
    objective.work.announce(FORWARD * 2 * sum(len(batch) for batch in objective.shares.batches))
    return _point(objective, 1.0, precision).rank / max(_point(objective, 0.0, precision).rank, 1e-9)


@torch.no_grad()
def _point(objective: Objective, alpha: float, precision: Precision = "float32") -> PathPoint:
    """Evaluate a point on the images of all processes."""
    objective.path.move_to(alpha)
    prompts = objective.criterion.prompt_features()
    width = prompts.shape[-1]
    # sums: the loss and the number of right answers, the features, and their products
    sums = torch.zeros(width + 2, width, device=prompts.device)
    for batch in objective.shares.batches:
        with passes(batch.pixels.device, precision):
            features = objective.criterion.embed(batch.pixels).float()
        logits = objective.criterion.logits(batch, prompts, features)
        sums[0, 0] += torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
        sums[0, 1] += (logits.argmax(1) == batch.labels).sum()
        sums[1] += features.sum(0)
        sums[2:] += features.T @ features
        objective.work.tick(FORWARD * len(batch))
    objective.shares.add_up(sums)
    sums = sums.cpu().double() / objective.shares.images
    return PathPoint(float(sums[0, 0]), float(sums[0, 1]), effective_rank(sums[2:] - sums[1].outer(sums[1])))


def effective_rank(covariance: Tensor) -> float:
    """Participation ratio of a covariance's eigenvalues v, (sum v)^2 / sum v^2: the number of them if all are equal.

    Example:
        >>> effective_rank(torch.diag(torch.tensor([2.0, 2.0, 0.0])))
        2.0
    """
    return float(covariance.trace().square() / covariance.square().sum().clamp_min(1e-30))
