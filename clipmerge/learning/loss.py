"""The distillation loss, as functions of tensors: distance from teachers on augmented images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import kl_div, normalize

from clipmerge.learning.interpolate import DEFAULT_ALPHA

DistillTarget = Literal["both", "predictions", "features"]


class Distillation(NamedTuple):
    """A distillation loss.

    Attributes:
        teachers: Points of the path whose mean predictions and mean features teach.
        predictions: Weight of the KL divergence of predictions.
        features: Weight of one minus the cosine of features.
    """

    teachers: tuple[float, ...]
    predictions: float
    features: float


#: A cosine differs less than predictions do, and less from features of the path's middle than from
#: those of its end: with these weights one `distill_weight` serves all.
DISTILLATIONS: dict[DistillTarget, Distillation] = {
    "both": Distillation((0.0, DEFAULT_ALPHA), predictions=0.5, features=2.0),
    "predictions": Distillation((0.0,), predictions=1.0, features=0.0),
    "features": Distillation((0.0,), predictions=0.0, features=2.0),
}


class Answer(NamedTuple):
    """The features, (images, width), and the logits, (images, classes), of some images."""

    features: Tensor
    logits: Tensor


class Targets(NamedTuple):
    """The teachers' mean features, of unit length before, (images, width), and the logarithms of
    their mean probabilities, (images, classes).
    """

    features: Tensor
    log_probabilities: Tensor


def mean_of_teachers(answers: Sequence[Answer]) -> Targets:
    """Average the features and the probabilities of several teachers."""
    units = [normalize(answer.features, dim=-1) for answer in answers]
    logs = [answer.logits.log_softmax(-1) for answer in answers]
    log_sum = torch.stack(logs).logsumexp(0)
    return Targets(torch.stack(units).mean(0), log_sum - math.log(len(answers)))


def distillation_losses(answer: Answer, targets: Targets, distill: DistillTarget) -> Tensor:
    """Compute the weighted distance of an answer from the teachers', by image, (images,)."""
    weights = DISTILLATIONS[distill]
    log_probabilities = answer.logits.log_softmax(-1)
    divergences = kl_div(
        log_probabilities, targets.log_probabilities, reduction="none", log_target=True
    )
    cosines = (normalize(answer.features, dim=-1) * targets.features).sum(-1)
    return weights.predictions * divergences.sum(-1) + weights.features * (1 - cosines)
