"""The loss that learning minimises, as functions of tensors: cross-entropy of weakly augmented
images, plus distillation of two teachers on strongly augmented ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import kl_div, normalize

from clipmerge.learning.interpolate import DEFAULT_ALPHA

DistillTarget = Literal["both", "predictions", "features", "path-features"]
#: Weights of the KL divergence of predictions and of one minus the cosine of features. A cosine
#: differs less than predictions do, and features of the path's middle less than those of its end:
#: with these weights one `distill_weight` serves all.
TARGET_WEIGHTS: dict[DistillTarget, tuple[float, float]] = {
    "both": (0.5, 2.0),
    "predictions": (1.0, 0.0),
    "features": (0.0, 2.0),
    "path-features": (0.0, 4.0),
}


#: Points of the path whose mean predictions and mean features teach.
TEACHER_ALPHAS: dict[DistillTarget, tuple[float, ...]] = {
    "both": (0.0, DEFAULT_ALPHA),
    "predictions": (0.0,),
    "features": (0.0,),
    "path-features": (0.0, DEFAULT_ALPHA),
}


class Targets(NamedTuple):
    """What teachers make of images: mean features of unit length before, (images, width), and the
    logarithm of mean probabilities, (images, classes).
    """

    features: Tensor
    log_probabilities: Tensor


def mean_of_teachers(features: Sequence[Tensor], logits: Sequence[Tensor]) -> Targets:
    """The mean of the teachers' features, (images, width), and of the probabilities of their
    logits, (images, classes).
    """
    units = [normalize(of_teacher, dim=-1) for of_teacher in features]
    logs = [of_teacher.log_softmax(-1) for of_teacher in logits]
    log_sum = torch.stack(logs).logsumexp(0)
    return Targets(
        features=torch.stack(units).mean(0), log_probabilities=log_sum - math.log(len(logits))
    )


def distillation_losses(
    features: Tensor, logits: Tensor, targets: Targets, distill: DistillTarget
) -> Tensor:
    """Weighted distance of features and logits from the teachers', by image, (images,)."""
    for_predictions, for_features = TARGET_WEIGHTS[distill]
    losses = torch.zeros(len(logits), device=logits.device)
    if for_predictions:
        divergences = kl_div(
            logits.log_softmax(-1), targets.log_probabilities, reduction="none", log_target=True
        )
        losses = losses + for_predictions * divergences.sum(-1)
    if for_features:
        own = normalize(features, dim=-1)
        cosines = (own * targets.features).sum(-1)
        losses = losses + for_features * (1 - cosines)
    return losses
