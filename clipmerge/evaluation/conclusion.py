"""Conclusions from the measured accuracies: recommendation, reason and warnings (rules:
`docs/explanation/the-answer.md`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clipmerge.finding import Finding
from clipmerge.planning.merge_effect import Difference, Gain, ModelAccuracy, Recommendation
from clipmerge.planning.other_tasks import OtherTaskScores, measures_of
from clipmerge.types import Json

# Accuracies are ratios of counts; rounding errors are far below one image in a billion.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Conclusion:
    """Recommendation and reason, how large the loss may be if that is beyond the limit, and
    measured losses beyond it.
    """

    recommendation: Recommendation
    reason: Finding
    possible_loss: Finding | None
    warnings: tuple[Finding, ...]


def conclude(
    *,
    finetuned: ModelAccuracy,
    merged: ModelAccuracy,
    over_finetuned: Gain,
    over_zeroshot: Gain,
    images: int,
    max_loss: float,
    learned: bool = False,
    labelled: bool = True,
    is_finetuned: bool = False,
    is_zeroshot: bool = False,
    class_means: tuple[float, float] | None = None,
    voted: Difference | None = None,
) -> Conclusion:
    """Recommend whether to use a merged model.

    ``learned`` says whether it has learned coefficients, ``labelled`` whether images have labels;
    if not, an accuracy is agreement with the fine-tuned model, and less of it need not be a loss.
    ``is_finetuned`` and ``is_zeroshot`` say whether the merged weights are one model's own.
    ``class_means`` are the accuracies of the fine-tuned and the merged model as means over classes,
    if these are uneven. ``voted`` is the difference in accuracy by the votes that chose the merge
    without labels, which then stands for the measured one.
    """
    if is_finetuned:
        return Conclusion("either", Finding.of("same-model"), None, ())
    agreement = over_finetuned.clean
    if voted is not None:
        over_finetuned = Gain(clean=voted, corrupted=over_finetuned.corrupted)
    elif not labelled and exceeds_max_loss(agreement.value, max_loss):
        reason = Finding.of("disagrees", clean=_numbers(agreement))
        return Conclusion("cannot-tell", reason, None, ())
    recommendation, reason = _recommend(over_finetuned, over_zeroshot, max_loss / 100, learned)
    if voted is not None and recommendation == "use":
        reason = Finding.of("votes", clean=_numbers(agreement), voted=_numbers(voted))
    if class_means is not None and recommendation in ("use", "either"):
        before, after = class_means
        if exceeds_max_loss(after - before, max_loss):
            recommendation = "too-few-images"
            reason = Finding.of("uneven-classes", finetuned=before, merged=after)
    if is_zeroshot and recommendation == "use":
        return Conclusion("prefer-zeroshot", Finding.of("is-zeroshot"), None, ())
    low = over_finetuned.clean.interval[0]
    possible = None
    if recommendation in ("use", "cannot-tell", "too-few-images") and exceeds_max_loss(
        low, max_loss
    ):
        possible = Finding.of("may-lose", loss=-low, limit=max_loss)
    warnings = loss_warnings(
        {"the merged model": merged.clean.value} if labelled else {},
        f"accuracy on {images} of your images",
        finetuned.clean.value,
        max_loss,
    )
    return Conclusion(recommendation, reason, possible, warnings)


def loss_warnings(
    accuracies: Mapping[str, float], where: str, finetuned: float, max_loss: float
) -> tuple[Finding, ...]:
    """Warn of losses of accuracy beyond the limit."""
    return tuple(
        Finding.of(
            "loses-accuracy",
            who=who,
            where=where,
            accuracy=accuracy,
            finetuned=finetuned,
            limit=max_loss,
        )
        for who, accuracy in accuracies.items()
        if exceeds_max_loss(accuracy - finetuned, max_loss)
    )


def exceeds_max_loss(difference: float, max_loss: float) -> bool:
    """Whether a difference in accuracy is a loss beyond the limit."""
    return -difference > max_loss / 100 + _ROUNDING


def weigh_other_tasks(
    recommendation: Recommendation,
    tasks: Sequence[OtherTaskScores],
    max_loss: float,
    *,
    on_experience: bool = False,
) -> tuple[Recommendation, Finding] | None:
    """Another recommendation where other tasks contradict the one of the target's images.

    A task is lost if the merged model is worse by more than the limit, and by more than chance
    where intervals are known. ``on_experience`` says that the user's own images show no difference.
    """
    if recommendation not in ("use", "either"):
        return None
    against_finetuned, against_zeroshot, regained = [], [], []
    for task in tasks:
        for measure, merged in measures_of(task.merged).items():
            zeroshot = measures_of(task.zeroshot)[measure]
            finetuned = max(measures_of(score)[measure] for score in task.finetuned)
            numbers = {
                "task": task.name,
                "measure": measure,
                "zeroshot": zeroshot,
                "finetuned": finetuned,
                "merged": merged,
            }
            error = 2 * math.sqrt(0.5 / task.images)  # of a difference, at most
            if finetuned - merged > max(max_loss / 100, error):
                against_finetuned.append(numbers)
            if zeroshot - merged > max(max_loss / 100, error):
                against_zeroshot.append(numbers)
            if merged - finetuned > max(max_loss / 100, error):
                regained.append(numbers)
    if against_finetuned:
        return "other-tasks", Finding.of("worse-on-other-tasks", tasks=against_finetuned)
    if recommendation == "either" and regained:
        return "use", Finding.of("regains-other-tasks", tasks=regained)
    if (recommendation == "either" or on_experience) and against_zeroshot and not regained:
        return "other-tasks", Finding.of("lost-on-other-tasks", tasks=against_zeroshot)
    return None


def _recommend(
    over_finetuned: Gain,
    over_zeroshot: Gain,
    limit: float,
    learned: bool,
) -> tuple[Recommendation, Finding]:
    """Apply the rules in order; the first that applies decides."""
    clean, corrupted = over_finetuned.clean, over_finetuned.corrupted
    against = (over_zeroshot.clean, over_zeroshot.corrupted)
    is_dominated = all(estimate.value <= 0 for estimate in against) and any(
        estimate.interval[1] < 0 for estimate in against
    )
    zeroshot_is_as_accurate = over_zeroshot.clean.value <= clean.value  # as the fine-tuned one
    if zeroshot_is_as_accurate and is_dominated:
        losses = {
            name: _numbers(estimate)
            for name, estimate in (
                ("corrupted", over_zeroshot.corrupted),
                ("clean", over_zeroshot.clean),
            )
            if estimate.interval[1] < 0
        }
        return "prefer-zeroshot", Finding.of("no-worse-zeroshot", **losses)
    low, high = clean.interval
    coarse = high - low > 4 * limit and exceeds_max_loss(low, 200 * limit)
    if exceeds_max_loss(high, 100 * limit):
        return "prefer-finetuned", Finding.of("surely-loses", clean=_numbers(clean))
    if exceeds_max_loss(clean.value, 100 * limit) or coarse:
        return "too-few-images", Finding.of("unclear-accuracy", clean=[low, high])
    if corrupted.interval[1] < 0:
        # fine-tuning makes a model robust to corruptions of its own target; real shifts often say
        # the opposite
        return "cannot-tell", Finding.of("loses-under-corruptions", corrupted=_numbers(corrupted))
    price = max(0.0, -clean.value)
    gains = {
        name: _numbers(estimate)
        for name, estimate in (("corrupted", corrupted), ("clean", clean))
        if estimate.interval[0] > 0
    }
    if gains:
        return "use", Finding.of("gains", price=price, **gains)
    probed = list(corrupted.interval)
    if learned:
        return "use", Finding.of("same-accuracy", clean=[low, high], corrupted=probed)
    if all(-limit <= low and high <= limit for low, high in (clean.interval, corrupted.interval)):
        return "either", Finding.of("no-difference", limit=100 * limit)
    return "too-few-images", Finding.of("unclear-robustness", corrupted=probed)


def _numbers(difference: Difference) -> Json:
    return {"value": difference.value, "interval": list(difference.interval)}
