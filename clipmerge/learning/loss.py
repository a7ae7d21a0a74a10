"""The distillation loss: the distance of a model from its teachers on augmented images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import kl_div, normalize

from clipmerge.learning.interpolate import DEFAULT_ALPHA

#: Points of the path whose mean predictions and mean features teach: the zero-shot model and the
#: middle.
TEACHERS = (0.0, DEFAULT_ALPHA)
# Weights of the KL divergence of predictions, and of one minus the cosine of features, which
# differs less.
_PREDICTIONS, _FEATURES = 0.5, 2.0


class Answer(NamedTuple):
    """The features, (images, width), and the logits, (images, classes), of some images."""

    features: Tensor
    logits: Tensor


class Targets(NamedTuple):
    """The means of the teachers' features, each scaled to unit length, (images, width), and the
    logarithms of their mean probabilities, (images, classes).
    """

    features: Tensor
    log_probabilities: Tensor


def mean_of_teachers(answers: Sequence[Answer]) -> Targets:
    """Average the features and the probabilities of several teachers."""
    units = [normalize(answer.features, dim=-1) for answer in answers]
    logs = [answer.logits.log_softmax(-1) for answer in answers]
    log_sum = torch.stack(logs).logsumexp(0)
    return Targets(torch.stack(units).mean(0), log_sum - math.log(len(answers)))


def distillation_losses(answer: Answer, targets: Targets) -> Tensor:
    """Compute the weighted distance of an answer from the teachers', by image, (images,)."""
    log_probabilities = answer.logits.log_softmax(-1)
    divergences = kl_div(
        log_probabilities, targets.log_probabilities, reduction="none", log_target=True
    )
    cosines = (normalize(answer.features, dim=-1) * targets.features).sum(-1)
    return _PREDICTIONS * divergences.sum(-1) + _FEATURES * (1 - cosines)
