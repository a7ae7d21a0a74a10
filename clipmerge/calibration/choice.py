"""Choose, by held-back images, between points of the straight path, the learned point and points between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from clipmerge.calibration.goal import Goal, goal_at
from clipmerge.calibration.objective import FORWARD, Objective
from clipmerge.calibration.steps import Step
from clipmerge.planning.measurements import HeldBackChoice


@dataclass(frozen=True)
class Candidate:
    """A point that can be chosen.

    Attributes:
        alpha: Coefficient on the straight path; ``None`` for a learned point.
        part: Share of the way from the start to the learned coefficients.
        beyond: Share of the remaining way to the fine-tuned model.
    """

    alpha: float | None = None
    part: float = 1.0
    beyond: float = 0.0


#: Learned points that are tried: shares of the way from the start, and from there of the way to fine-tuned.
_GRID = {1.0: (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75), 0.7: (0.0, 0.1, 0.2, 0.3), 0.4: (0.0, 0.1, 0.2)}
CANDIDATES = tuple(Candidate(part=part, beyond=beyond) for part, row in _GRID.items() for beyond in row)
#: Further points for a sparse mask, which cannot fall back to the path: learned ones that are nearly fine-tuned, and
#: one coefficient for all that the mask keeps, from the start up to fine-tuned.
_MASKED_GRID = {1.0: (0.6, 0.9), 0.0: (0.0, 0.25, 0.5, 0.75, 1.0)}
UNDER_A_MASK = tuple(Candidate(part=part, beyond=beyond) for part, row in _MASKED_GRID.items() for beyond in row)


@dataclass(frozen=True)
class ValidationScore:
    """The goal at a point, on fresh changes of the held-back images.

    Attributes:
        goal: Value of the goal.
        accuracy: Share of the views that are recognised.
        loss: Mean cross-entropy of the views, in nats.
    """

    goal: float
    accuracy: float
    loss: float = 0.0


@torch.no_grad()
def validate(objective: Objective, steps: Sequence[Step], goal: Goal) -> ValidationScore:
    """Compute the goal at the current weights, for which nothing is cached, over the images of all steps."""
    cached = embeds_less_at_once(objective, steps)
    sums = torch.zeros(3, dtype=torch.float64)
    for step in steps:
        value, losses = goal_at(objective, step, goal, cached=cached)
        sums += len(step) * torch.tensor([float(value), losses.accuracy, losses.calibration], dtype=torch.float64)
        objective.work.tick(FORWARD * goal.picture_count(len(step)) * step.work_share)
    if any(step.shard[1] > 1 for step in steps):
        objective.shares.add_up(sums)
    return ValidationScore(*(sums / sum(len(step) for step in steps)).tolist())


def embeds_less_at_once(objective: Objective, steps: Sequence[Step]) -> bool:
    """Whether embedding all prompts once, with fixed weights, costs no more than the steps' own prompts."""
    return objective.criterion.prompts.count <= own_prompts(objective, steps)


def own_prompts(objective: Objective, steps: Sequence[Step]) -> int:
    """Count the prompts of steps, each with its own classes and templates."""
    classes, templates = objective.criterion.prompts.classes, objective.criterion.prompts.templates
    return sum(
        (classes if step.classes is None else len(step.classes))
        * (templates if step.templates is None else len(step.templates))
        for step in steps
    )


def prompts_at(objective: Objective, steps: Sequence[Step]) -> int:
    """Count the prompts that are embedded for all steps while the weights stay; see `embeds_less_at_once`."""
    return min(objective.criterion.prompts.count, own_prompts(objective, steps))


def choose(
    path: Mapping[float, ValidationScore],
    learned: Mapping[Candidate, ValidationScore],
    *,
    images: int,
    max_loss: float,
    path_counts: bool = True,
) -> HeldBackChoice:
    """Choose the point with the lowest goal among those that keep enough of the fine-tuned model's accuracy.

    Args:
        path: Score by alpha, including alpha 1.
        learned: Score by learned point.
        images: Number of images held back.
        max_loss: Points of accuracy on the held-back images that may be lost against the fine-tuned model.
        path_counts: Whether a point of the path can be chosen. If not, a learned point is chosen even if it is worse;
            if none keeps enough accuracy, the most accurate.

    Returns:
        The choice; if the path counts, a learned point must be better than every point of it.
    """
    finetuned = path[1.0]
    needed = finetuned.accuracy - max_loss / 100
    allowed = {alpha: score for alpha, score in path.items() if score.accuracy >= needed}
    alpha = min(allowed, key=lambda alpha: allowed[alpha].goal)
    accurate = {candidate: score for candidate, score in learned.items() if score.accuracy >= needed}
    if accurate:
        best = min(accurate, key=lambda candidate: accurate[candidate].goal)
    else:
        best = max(learned, key=lambda candidate: learned[candidate].accuracy)
    score = learned[best]
    if path_counts and (not accurate or score.goal >= path[alpha].goal):
        best, score = Candidate(alpha=alpha), path[alpha]
    return HeldBackChoice(
        images=images,
        alpha=best.alpha,
        part=best.part,
        beyond=best.beyond,
        goal=score.goal,
        right=score.accuracy,
        path_alpha=alpha,
        path_goal=path[alpha].goal,
        finetuned_right=finetuned.accuracy,
    )
