"""Choose, by held-back images, between points of the straight path, the learned point and points between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from clipmerge.calibration.anchor import UNTUNED
from clipmerge.calibration.goal import Goal, class_features, corrupted_goals, make_pictures, terms_of
from clipmerge.calibration.objective import FORWARD, Objective
from clipmerge.calibration.steps import Step
from clipmerge.distributed import sent
from clipmerge.planning.measurements import HeldBackChoice

Interval = tuple[float, float]


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


# Accuracies are means of float64, so a loss of exactly the limit may come out a little above it.
_ROUNDING = 1e-9
#: Learned points that are tried: shares of the way from the start, and from there of the way to fine-tuned.
_GRID = {1.0: (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75), 0.7: (0.0, 0.1, 0.2, 0.3), 0.5: (0.0, 0.1, 0.2), 0.3: (0.0, 0.2)}
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
            and the goal under corruptions of other kinds than the changes that learning sees.
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
        """The goal of every image under other corruptions, (images,), in nats."""
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
        other = corrupted_goals(objective, goal, step, pictures.labels, classes)
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
    anchor: float | None = None,
    path_counts: bool = True,
) -> HeldBackChoice:
    """Choose between the path and what was learned, among points that keep enough accuracy.

    Args:
        path: Score by alpha, including alpha 1.
        learned: Score by learned point; empty if nothing was learned.
        max_loss: Points of accuracy on the held-back images that may be lost against the fine-tuned model, beyond the
            standard error of that loss.
        anchor: Point of the path that is taken for it if it keeps enough accuracy, else the nearest one that does.
        path_counts: Whether the path can be chosen. If not, a learned point is chosen even if it is worse; if none
            keeps enough accuracy, the most accurate.

    Returns:
        The choice between the path's point, see `_path_point`, and the learned point with the lowest goal, or with an
        anchor the nearest to it, of those that are better by the paired interval over the images, and not worse by that
        under other corruptions. Without any the path is taken if it counts, and else the first by that order.
    """
    limit, finetuned = max_loss / 100, path[1.0]
    accurate = {alpha: score for alpha, score in path.items() if _keeps_accuracy(score, finetuned, limit)}
    alpha = _path_point(accurate) if anchor is None else min(accurate, key=lambda alpha: abs(alpha - anchor))
    best, score = Candidate(alpha=alpha), path[alpha]
    intervals: tuple[Interval | None, Interval | None] = (None, None)
    if learned:
        kept = [candidate for candidate, score in learned.items() if _keeps_accuracy(score, finetuned, limit)]
        if anchor is None:
            ranked = sorted(kept, key=lambda candidate: learned[candidate].goal)
        else:  # learning from the path's middle soon overshoots what these images can show: no further than needed
            ranked = sorted(kept, key=lambda candidate: (candidate.beyond, candidate.part))
        ranked = ranked or [max(learned, key=lambda candidate: learned[candidate].accuracy)]
        gains = {
            candidate: (
                paired_interval(path[alpha].goals - learned[candidate].goals),
                paired_interval(path[alpha].corrupted - learned[candidate].corrupted),
            )
            for candidate in ranked
        }
        proven = [at for at, (gain, other) in gains.items() if kept and gain and other and gain[0] > 0 <= other[1]]
        tried = (proven or ranked)[0]
        intervals = gains[tried]
        if proven or not path_counts:
            best, score = tried, learned[tried]
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
        gain=intervals[0],
        corrupted_gain=intervals[1],
    )


def _keeps_accuracy(score: ValidationScore, finetuned: ValidationScore, limit: float) -> bool:
    """Whether the loss of accuracy, less the standard error of its estimate, is within the limit."""
    lost = finetuned.rows[1] - score.rows[1]
    error = float(lost.std()) / math.sqrt(len(lost)) if len(lost) > 1 else 0.0
    return float(lost.mean()) - error <= limit + _ROUNDING


def _path_point(path: Mapping[float, ValidationScore]) -> float:
    """The alpha nearest to 0.5 that is not worse than the best by the interval of their goals, paired by image."""
    best = min(path.values(), key=lambda score: score.goal)
    intervals = {alpha: paired_interval(score.goals - best.goals) for alpha, score in path.items()}
    as_good = [alpha for alpha, low_high in intervals.items() if path[alpha] is best or (low_high and low_high[0] <= 0)]
    return min(as_good, key=lambda alpha: abs(alpha - UNTUNED))


def paired_interval(differences: Tensor) -> Interval | None:
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
