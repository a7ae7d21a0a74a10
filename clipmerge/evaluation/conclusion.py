"""Conclusions from the measured accuracies: recommendation, reason and warnings (rules:
`docs/explanation/the-answer.md`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clipmerge.errors import counted
from clipmerge.planning.merge_effect import ADVICE, Difference, Gain, ModelAccuracy, Recommendation

# Accuracies are ratios of counts; rounding errors are far below one image in a billion.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Conclusion:
    """Recommendation, the main numbers in a sentence after it, the reason, and warnings of one line
    each.
    """

    recommendation: Recommendation
    verdict: str
    reason: str
    warnings: tuple[str, ...]


def concluded(
    *,
    zeroshot: ModelAccuracy,
    finetuned: ModelAccuracy,
    merged: ModelAccuracy,
    over_finetuned: Gain,
    over_zeroshot: Gain,
    images: int,
    max_loss: float,
    learned: bool = False,
) -> Conclusion:
    """Recommend whether to use a merged model.

    ``learned`` says whether it has learned coefficients.
    """
    recommendation, reason = _recommended(over_finetuned, over_zeroshot, max_loss / 100, learned)
    low, high = merged.clean.interval
    verdict = (
        f"{ADVICE[recommendation]}. Of {counted(images, 'image', 'images')} that the decision did"
        f" not see, the merged model recognises {_percent(merged.clean.value)}% [{_percent(low)},"
        f" {_percent(high)}] (fine-tuned {_percent(finetuned.clean.value)}); under unrelated"
        f" corruptions {_percent(merged.corrupted.value)}% (zero-shot"
        f" {_percent(zeroshot.corrupted.value)}, fine-tuned {_percent(finetuned.corrupted.value)})."
    )
    loss = -over_finetuned.clean.interval[0]
    if recommendation in ("use", "cannot-tell", "too-few-images") and loses(-loss, max_loss):
        reason += (
            f" The loss on your images may be as large as {_beyond(loss, max_loss)} points, more"
            f" than the {max_loss:g} of --max-loss."
        )
    where = f"accuracy on {images} of your images"
    warnings = loss_warnings(
        {"the merged model": merged.clean.value}, where, finetuned.clean.value, max_loss
    )
    return Conclusion(recommendation, verdict, reason, warnings)


def loss_warnings(
    accuracies: Mapping[str, float], where: str, finetuned: float, max_loss: float
) -> tuple[str, ...]:
    """Warn of losses of accuracy beyond the limit."""
    return tuple(
        f"{who} loses {_beyond(finetuned - accuracy, max_loss)} points of the fine-tuned model's"
        f" {where} ({_percent(accuracy)}% against {_percent(finetuned)}%), more than the"
        f" {max_loss:g} of --max-loss"
        for who, accuracy in accuracies.items()
        if loses(accuracy - finetuned, max_loss)
    )


def loses(difference: float, max_loss: float) -> bool:
    """Whether a difference in accuracy is a loss beyond the limit."""
    return -difference > max_loss / 100 + _ROUNDING


def _recommended(
    over_finetuned: Gain,
    over_zeroshot: Gain,
    limit: float,
    learned: bool,
) -> tuple[Recommendation, str]:
    """Apply the rules in order; the first that applies decides."""
    clean, corrupted = over_finetuned.clean, over_finetuned.corrupted
    against = (over_zeroshot.clean, over_zeroshot.corrupted)
    is_dominated = all(each.value <= 0 for each in against) and any(
        each.interval[1] < 0 for each in against
    )
    zeroshot_is_as_accurate = over_zeroshot.clean.value <= clean.value  # as the fine-tuned one
    if zeroshot_is_as_accurate and is_dominated:
        losses = _gains(_negative(over_zeroshot.corrupted), _negative(over_zeroshot.clean))
        return (
            "prefer-zeroshot",
            (
                "The zero-shot model recognises as many of your images as the fine-tuned one or"
                f" more, and the merged model loses {losses} against it."
            ),
        )
    low, high = clean.interval
    coarse = high - low > 4 * limit and loses(low, 200 * limit)
    if loses(high, 100 * limit):
        return (
            "prefer-finetuned",
            f"The merged model loses {_points(_negative(clean))} of accuracy on your images.",
        )
    if loses(clean.value, 100 * limit) or coarse:
        return (
            "too-few-images",
            (
                f"The accuracy may have changed by anything from {_signed(low)} to {_signed(high)}"
                " points; more images would tell."
            ),
        )
    gains = _gains(corrupted, clean)
    price = (
        f", at the price of {_percent(-clean.value)} points on your images"
        if clean.value < 0
        else ""
    )
    if corrupted.interval[1] < 0:
        # fine-tuning makes a model robust to corruptions of its own target; real shifts often say
        # the opposite
        return (
            "cannot-tell",
            (
                f"The merged model loses {_points(_negative(corrupted))} under unrelated"
                " corruptions. On the real shifts that were tried, such a loss foretold nothing;"
                " images of your shift would tell (clipmerge sweep --ood)."
            ),
        )
    if gains:
        return "use", f"The merged model gains {gains} over the fine-tuned model{price}."
    probed = " to ".join(map(_signed, corrupted.interval))
    if learned:
        return (
            "use",
            (
                f"The merged model keeps the accuracy on your images ({_signed(low)} to"
                f" {_signed(high)} points against the fine-tuned one), and unrelated corruptions"
                f" show no difference ({probed}). On the real shifts that were tried, merges by"
                " this recipe that kept the accuracy were nearly always at least as robust."
            ),
        )
    if all(-limit <= low and high <= limit for low, high in (clean.interval, corrupted.interval)):
        return (
            "either",
            (
                f"The merged and the fine-tuned model differ by no more than {100 * limit:g}"
                " points, with and without unrelated corruptions."
            ),
        )
    return (
        "too-few-images",
        (
            "Whether the merged model is more robust cannot be told: under unrelated corruptions it"
            f" differs by {probed} points; more images would tell."
        ),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"


def _points(difference: Difference) -> str:
    low, high = difference.interval
    return f"{_percent(difference.value)} points [{_percent(low)}, {_percent(high)}]"


def _gains(corrupted: Difference, clean: Difference) -> str:
    """The differences that are significantly above 0, in words."""
    places = ((corrupted, "under unrelated corruptions"), (clean, "on your images"))
    return " and ".join(
        f"{_points(each)} {where}" for each, where in places if each.interval[0] > 0
    )


def _negative(difference: Difference) -> Difference:
    low, high = difference.interval
    return Difference(value=-difference.value, interval=(-high, -low))


def _beyond(loss: float, limit: float) -> str:
    """Write a loss with enough digits to show that it is beyond the limit.

    Example:
        >>> _beyond(0.402, 3), _beyond(0.0304, 3)
        ('40.2', '3.04')
    """
    texts = [f"{100 * loss:.{digits}f}" for digits in range(1, 9)]
    return next((text for text in texts if float(text) > limit), texts[-1])
