"""Choose, by held-back images, between points of the straight path, the learned point and points between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipmerge.calibration.augmentation import corrupted
from clipmerge.calibration.goal import Goal, class_features, logits_of, make_pictures, terms_of
from clipmerge.calibration.objective import FORWARD, Objective
from clipmerge.calibration.steps import Step
from clipmerge.distributed import sent
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
_GRID = {1.0: (0.0, 0.1, 0.2, 0.3, 0.5, 0.75), 0.7: (0.0, 0.1, 0.2, 0.3), 0.5: (0.0, 0.1, 0.2), 0.3: (0.0, 0.2)}
CANDIDATES = tuple(Candidate(part=part, beyond=beyond) for part, row in _GRID.items() for beyond in row)
#: Further points for a sparse mask, which cannot fall back to the path: learned ones that are nearly fine-tuned, and
#: one coefficient for all that the mask keeps, from the start up to fine-tuned.
_MASKED_GRID = {1.0: (0.6, 0.9), 0.0: (0.0, 0.25, 0.5, 0.75, 1.0)}
UNDER_A_MASK = tuple(Candidate(part=part, beyond=beyond) for part, row in _MASKED_GRID.items() for beyond in row)


@dataclass(frozen=True, eq=False)
class ValidationScore:
    """A point on the held-back images: four rows of one number per image, averaged over its changes.

    Attributes:
        rows: (4, images), float64: the goal, in nats; whether the view is recognised; the cross-entropy of the view;
            and that under corruptions of other kinds than the changes that learning sees.
    """

    rows: Tensor

    @property
    def goals(self) -> Tensor:
        """The goal of every image, (images,)."""
        return self.rows[0]

    @property
    def goal(self) -> float:
        """Mean goal, in nats."""
        return float(self.rows[0].mean())

    @property
    def accuracy(self) -> float:
        """Share of the views that are recognised."""
        return float(self.rows[1].mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy of the views, in nats."""
        return float(self.rows[2].mean())

    @property
    def corrupted(self) -> Tensor:
        """Cross-entropy of every image under other corruptions, (images,)."""
        return self.rows[3]


@torch.no_grad()
def validate(objective: Objective, steps: Sequence[Step], goal: Goal) -> ValidationScore:
    """Score the current weights, for which nothing is cached, on the images of all steps."""
    cached = embeds_less_at_once(objective, steps)
    row_of = {position: row for row, position in enumerate(sorted({p for step in steps for p in step.positions}))}
    sums = torch.zeros(5, len(row_of), device=objective.shares.accelerator.device)
    for step in steps:
        classes = class_features(objective, step, goal, cached=cached)  # once for the goal and the corruptions
        pictures = make_pictures(step, goal)
        terms = terms_of(objective, goal, pictures, classes)
        goals = terms.views.clone()
        goals[: len(terms.divergence)] += goal.weight * terms.divergence
        pixels = corrupted(step.batch.pixels, step.seed, len(step), step.own_rows)
        logits = logits_of(objective, goal, pixels, classes)
        other = cross_entropy(logits, pictures.labels, reduction="none")
        values = torch.stack([goals, terms.correct.to(goals), terms.views, other, torch.ones_like(goals)])
        rows = sent(torch.tensor([row_of[position] for position in step.positions[step.own_rows]]), sums.device)
        sums.index_add_(1, rows, values)
        objective.work.tick(FORWARD * validation_pictures(goal, len(step)) * step.work_share)
    if any(step.shard[1] > 1 for step in steps):
        objective.shares.add_up(sums)
    return ValidationScore((sums[:-1] / sums[-1]).cpu().double())


def validation_pictures(goal: Goal, images: int) -> int:
    """Number of pictures per validated point for a number of images: those of the goal, and corrupted ones."""
    return goal.picture_count(images) + images


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


def choose(
    path: Mapping[float, ValidationScore],
    learned: Mapping[Candidate, ValidationScore],
    *,
    max_loss: float,
    path_counts: bool = True,
) -> HeldBackChoice:
    """Choose between the best points of the path and of what was learned that keep enough accuracy: the lowest goals.

    Args:
        path: Score by alpha, including alpha 1.
        learned: Score by learned point.
        max_loss: Points of accuracy on the held-back images that may be lost against the fine-tuned model.
        path_counts: Whether the path can be chosen. If not, a learned point is chosen even if it is worse; if none
            keeps enough accuracy, the most accurate.

    Returns:
        The choice. If the path counts, a learned point must be better than it by the paired interval over the images,
        and not worse by that under other corruptions: without evidence, the path is taken.
    """
    needed = path[1.0].accuracy - max_loss / 100
    alpha = min((alpha for alpha, score in path.items() if score.accuracy >= needed), key=lambda at: path[at].goal)
    accurate = {candidate: score for candidate, score in learned.items() if score.accuracy >= needed}
    if accurate:
        best = min(accurate, key=lambda candidate: accurate[candidate].goal)
    else:
        best = max(learned, key=lambda candidate: learned[candidate].accuracy)
    score = learned[best]
    gain = paired_interval(path[alpha].goals - score.goals)
    corrupted_gain = paired_interval(path[alpha].corrupted - score.corrupted)
    proven = gain is not None and gain[0] > 0 and corrupted_gain is not None and corrupted_gain[1] >= 0
    if path_counts and not (accurate and proven):
        best, score = Candidate(alpha=alpha), path[alpha]
    return HeldBackChoice(
        images=len(score.goals),
        alpha=best.alpha,
        part=best.part,
        beyond=best.beyond,
        goal=score.goal,
        right=score.accuracy,
        path_alpha=alpha,
        path_goal=path[alpha].goal,
        finetuned_right=path[1.0].accuracy,
        gain=gain,
        corrupted_gain=corrupted_gain,
    )


def paired_interval(differences: Tensor) -> tuple[float, float] | None:
    """95% interval of the mean of paired differences, by Student's t; ``None`` for a single one.

    Example:
        >>> low, high = paired_interval(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        >>> round(low, 2), round(high, 2)
        (-0.48, 4.48)
    """
    count, mean = len(differences), float(differences.mean())
    if count < 2:
        return None
    half = float(stdtrit(count - 1, 0.975)) * float(differences.std()) / math.sqrt(count)
    return mean - half, mean + half
