"""Choose, by held-back images, between points of the straight path, the learned point and points
between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from clipmerge.distributed import to_device
from clipmerge.learning.anchor import UNTUNED
from clipmerge.learning.goal import (
    Goal,
    class_features,
    copies_alone,
    corrupted_goals,
    embeds_less_at_once,
    terms_of,
    views_alone,
)
from clipmerge.learning.objective import FORWARD, Objective
from clipmerge.learning.steps import Step
from clipmerge.planning.measurements import HeldBackChoice
from clipmerge.stats import Interval, paired_mean_interval

#: Rows of numbers, or one row, for this process's images of a step and the class features.
RowsOf = Callable[[Step, Tensor], Tensor]


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
#: Learned points that are tried: shares of the way from the start, and from there of the way to
#: fine-tuned.
_GRID = {
    1.0: (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75),
    0.7: (0.0, 0.1, 0.2, 0.3),
    0.5: (0.0, 0.1, 0.2),
    0.3: (0.0, 0.2),
}
CANDIDATES = tuple(
    Candidate(part=part, beyond=beyond) for part, row in _GRID.items() for beyond in row
)
#: Further points for a sparse mask, which cannot fall back to the path: learned ones that are
#: nearly fine-tuned, and one coefficient for all that the mask keeps, from the start up to
#: fine-tuned.
_MASKED_GRID = {1.0: (0.6, 0.9), 0.0: (0.0, 0.25, 0.5, 0.75, 1.0)}
UNDER_A_MASK = tuple(
    Candidate(part=part, beyond=beyond) for part, row in _MASKED_GRID.items() for beyond in row
)


@dataclass(frozen=True, eq=False)
class ValidationScore:
    """A point on the held-back images: three rows of one number per image, averaged over its
    changes.

    Attributes:
        rows: (3, images), float64: the goal, in nats; whether the view is recognised; the
            cross-entropy of the view.
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


def validate_views(objective: Objective, steps: Sequence[Step], goal: Goal) -> Tensor:
    """Whether the current weights recognise the views of all steps, and their cross-entropy, by
    image: (2, images).
    """

    def rows_of(step: Step, classes: Tensor) -> Tensor:
        losses, recognised, _ = terms_of(objective, goal, views_alone(step, goal), classes)
        return torch.stack([recognised.to(losses), losses])

    return _by_image(objective, steps, goal, rows_of)


def with_copies(
    objective: Objective, steps: Sequence[Step], goal: Goal, views: Tensor
) -> ValidationScore:
    """Complete a score by the divergence of the changed copies, one of each image, at the same
    weights.
    """

    def divergence_of(step: Step, classes: Tensor) -> Tensor:
        return terms_of(objective, goal, copies_alone(step, goal), classes)[2]

    recognised, losses = views
    goals = (
        losses + goal.weight * _extra_row(objective, steps, goal, divergence_of)
        if goal.robustness
        else losses
    )
    return ValidationScore(torch.stack([goals, recognised, losses]))


def validate_corrupted(objective: Objective, steps: Sequence[Step], goal: Goal) -> Tensor:
    """The goal at the current weights under corruptions of other kinds than the changes that
    learning sees, by image.

    Returns:
        Shape (images,), float64, in nats, averaged over the steps that have an image.
    """
    return _extra_row(objective, steps, goal, partial(corrupted_goals, objective, goal))


def _extra_row(objective: Objective, steps: Sequence[Step], goal: Goal, row_of: RowsOf) -> Tensor:
    """One number per image, (images,), at a point; its work is announced here, since few points
    need it.
    """
    objective.work.announce(FORWARD * sum(len(step) * step.work_share for step in steps))
    return _by_image(objective, steps, goal, lambda step, classes: row_of(step, classes)[None])[0]


@torch.no_grad()
def _by_image(objective: Objective, steps: Sequence[Step], goal: Goal, rows_of: RowsOf) -> Tensor:
    """Rows of numbers of all steps' images, over all processes, averaged by image: (rows, images),
    float64.
    """
    cached = embeds_less_at_once(objective, steps)
    place_of = {
        position: place
        for place, position in enumerate(sorted({p for step in steps for p in step.positions}))
    }
    found, places = [], list[int]()
    for step in steps:
        found.append(rows_of(step, class_features(objective, step, goal, cached=cached)))
        objective.work.tick(FORWARD * len(step) * step.work_share)
        places += [place_of[position] for position in step.positions[step.own_rows]]
    rows = torch.cat(found, 1)
    sums = torch.zeros(len(rows) + 1, len(place_of), device=rows.device)
    sums.index_add_(
        1,
        to_device(torch.tensor(places), rows.device),
        torch.cat([rows, torch.ones_like(rows[:1])]),
    )
    if any(step.shard[1] > 1 for step in steps):
        objective.shares.all_reduce_(sums)
    return (sums[:-1] / sums[-1]).cpu().double()


def choose(
    path: Mapping[float, ValidationScore],
    candidates: Sequence[Candidate],
    recognised_of: Callable[[Candidate], Tensor],
    score_of: Callable[[Candidate], ValidationScore],
    corrupted_of: Callable[[Candidate], Tensor],
    *,
    max_loss: float,
    anchor: float | None = None,
    path_counts: bool = True,
) -> HeldBackChoice:
    """Choose between the path and what was learned, among points that keep enough accuracy.

    Args:
        path: Score by alpha, including alpha 1; goals are read of the `accurate_points` alone.
        candidates: The learned points; empty if nothing was learned.
        recognised_of: Whether a learned point recognises the views, by image; called for most of
            them, so keep it.
        score_of: Scores a learned point; called for no more of them than the choice needs.
        corrupted_of: The goal of every image under other corruptions at a point, likewise.
        max_loss: Points of accuracy on the held-back images that may be lost against the fine-tuned
            model, beyond the standard error of that loss.
        anchor: Point of the path that is taken for it if it keeps enough accuracy, else the nearest
            one that does.
        path_counts: Whether the path can be chosen. If not, a learned point is chosen even if it is
            worse; if none keeps enough accuracy, the most accurate.

    Returns:
        The choice between the path's point, see `_path_point`, and the learned point with the
        lowest goal, or with an anchor the nearest to it, of those that are better by the paired
        interval over the images, and not worse by that under other corruptions; without any, of
        those that are better under other corruptions, and not worse without them. Without these the
        path is taken if it counts, and else the first by that order.
    """
    recognised = {alpha: score.rows[1] for alpha, score in path.items()}
    alpha = _path_point(
        {alpha: path[alpha] for alpha in accurate_points(recognised, max_loss, anchor)}
    )
    best, score = Candidate(alpha=alpha), path[alpha]
    gains: tuple[Interval | None, Interval | None] = None, None
    if candidates:
        scores, corrupted = cache(score_of), cache(corrupted_of)

        def gain(candidate: Candidate) -> Interval | None:
            return paired_mean_interval(path[alpha].goals - scores(candidate).goals)

        def corrupted_gain(candidate: Candidate) -> Interval | None:
            return paired_mean_interval(corrupted(Candidate(alpha=alpha)) - corrupted(candidate))

        def ranked() -> Iterator[Candidate]:
            """The points that keep enough accuracy, in order; no more of them are scored than are
            asked for.
            """
            order = list(candidates)
            if (
                anchor is not None
            ):  # learning from the path's middle soon overshoots what these images can show
                order.sort(key=lambda candidate: (candidate.beyond, candidate.part))
            accurate = (
                point
                for point in order
                if _keeps_accuracy(recognised_of(point), recognised[1.0], max_loss)
            )
            return (
                accurate
                if anchor is not None
                else iter(sorted(accurate, key=lambda point: scores(point).goal))
            )

        def proven(*, by_views: bool) -> Candidate | None:
            """The first point that is better on views, or else under other corruptions, and not
            worse by the other.
            """
            for candidate in ranked():
                better = gain(candidate)
                if better and better[1] >= 0 and (better[0] > 0 or not by_views):
                    other = corrupted_gain(candidate)
                    if other and other[1] >= 0 and (other[0] > 0 or by_views):
                        return candidate
            return None

        # few images may have single ones with large losses, which hide a gain on one side alone
        found = proven(by_views=True) or proven(by_views=False)
        tried = (
            found
            or next(ranked(), None)
            or max(candidates, key=lambda point: float(recognised_of(point).mean()))
        )
        gains = gain(tried), corrupted_gain(tried)
        if found or not path_counts:
            best, score = tried, scores(tried)
    return HeldBackChoice(
        images=len(score.goals),
        alpha=best.alpha,
        shrink=best.part,
        extrapolation=best.beyond,
        objective=score.goal,
        accuracy=score.accuracy,
        path_alpha=alpha,
        path_objective=path[alpha].goal,
        finetuned_accuracy=path[1.0].accuracy,
        gain=gains[0],
        corrupted_gain=gains[1],
    )


def accurate_points(
    recognised: Mapping[float, Tensor], max_loss: float, anchor: float | None
) -> list[float]:
    """Alphas of the path's points that keep enough accuracy; with an anchor, the nearest to it
    alone.
    """
    accurate = [
        alpha
        for alpha, found in recognised.items()
        if _keeps_accuracy(found, recognised[1.0], max_loss)
    ]
    return accurate if anchor is None else [min(accurate, key=lambda alpha: abs(alpha - anchor))]


def _keeps_accuracy(recognised: Tensor, finetuned: Tensor, max_loss: float) -> bool:
    """Whether the loss of accuracy, less the standard error of its estimate, is within the
    limit.
    """
    lost = finetuned - recognised
    error = float(lost.std()) / math.sqrt(len(lost)) if len(lost) > 1 else 0.0
    return float(lost.mean()) - error <= max_loss / 100 + _ROUNDING


def _path_point(path: Mapping[float, ValidationScore]) -> float:
    """The alpha nearest to 0.5 that is not worse than the best by the interval of their goals,
    paired by image.
    """
    best = min(path.values(), key=lambda score: score.goal)
    intervals = {
        alpha: paired_mean_interval(score.goals - best.goals) for alpha, score in path.items()
    }
    as_good = [
        alpha
        for alpha, low_high in intervals.items()
        if path[alpha] is best or (low_high and low_high[0] <= 0)
    ]
    return min(as_good, key=lambda alpha: abs(alpha - UNTUNED))
