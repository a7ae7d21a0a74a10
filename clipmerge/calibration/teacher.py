"""The teacher of the divergence: the zero-shot model, or its predictions blended with the fine-tuned model's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from clipmerge.calibration.goal import Goal, copies_of
from clipmerge.calibration.objective import FORWARD, Objective
from clipmerge.calibration.steps import Step
from clipmerge.models.precision import passes


@torch.no_grad()
def asked(objective: Objective, steps: Sequence[Step], goal: Goal, *, kept: bool) -> list[Step]:
    """Compute the teacher's answers for the changed images of every step.

    Args:
        objective: Calibration loss; left at theta_0, or at theta_1 if the teacher is blended.
        steps: The steps with their images and classes.
        goal: The goal with its changes and its teacher.
        kept: See `Objective.class_features`.

    Returns:
        The steps with the answers needed by the goal.
    """
    answered = list(steps)
    for alpha in goal.teachers:
        objective.path.move_to(alpha)
        share = goal.blend if alpha else 1 - goal.blend
        for place, step in enumerate(answered):
            answered[place] = _answered(objective, step, goal, share, kept=kept)
            objective.work.tick(FORWARD * goal.copied(len(step)) * step.part)
    return answered


def _answered(objective: Objective, step: Step, goal: Goal, share: float, *, kept: bool) -> Step:
    """Add one model's answer to a step: features, or its share of the teacher's probabilities."""
    pixels = copies_of(step, goal, step.batch.pixels)
    with passes(pixels.device, goal.precision):
        features = objective.criterion.embed(pixels)
        classes = objective.criterion.class_features(step.classes, step.templates, kept=kept)
    if goal.divergence == "features":
        return replace(step, features=features.float())
    own = objective.criterion.class_logits(features.float(), classes.float()).log_softmax(-1)
    if share == 1:
        return replace(step, target=own)
    own = own + math.log(share)
    return replace(step, target=own if step.target is None else torch.logaddexp(step.target, own))
