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


def teacher_alphas(target: DistillTarget) -> tuple[float, ...]:
    """Points of the path whose mean predictions and mean features teach."""
    return (0.0, DEFAULT_ALPHA) if target in ("both", "path-features") else (0.0,)


class Outputs(NamedTuple):
    """What a model makes of images: image features, (images, width), and logits, (images,
    classes).
    """

    features: Tensor
    logits: Tensor

    def tensor_split(self, at: int | list[int]) -> list[Outputs]:
        """Split the images."""
        features = self.features.tensor_split(at)
        logits = self.logits.tensor_split(at)
        return [Outputs(*part) for part in zip(features, logits, strict=True)]


class Targets(NamedTuple):
    """What teachers make of images: mean features of unit length before, (images, width), and the
    logarithm of mean probabilities, (images, classes).
    """

    features: Tensor
    log_probabilities: Tensor


def mean_of_teachers(teachers: Sequence[Outputs]) -> Targets:
    """The mean of teachers' features and of their probabilities."""
    features = [normalize(teacher.features, dim=-1) for teacher in teachers]
    logs = [teacher.logits.log_softmax(-1) for teacher in teachers]
    mean_features = torch.stack(features).mean(0)
    log_sum = torch.stack(logs).logsumexp(0)
    return Targets(mean_features, log_sum - math.log(len(teachers)))


def distillation_losses(student: Outputs, targets: Targets, distill: DistillTarget) -> Tensor:
    """Weighted distance of a model from its teachers, by image, (images,)."""
    for_predictions, for_features = TARGET_WEIGHTS[distill]
    losses = torch.zeros(len(student.logits), device=student.logits.device)
    if for_predictions:
        divergences = kl_div(
            student.logits.log_softmax(-1),
            targets.log_probabilities,
            reduction="none",
            log_target=True,
        )
        losses = losses + for_predictions * divergences.sum(-1)
    if for_features:
        own = normalize(student.features, dim=-1)
        cosines = (own * targets.features).sum(-1)
        losses = losses + for_features * (1 - cosines)
    return losses
