"""Sentences and numbers about a merge for card, page and terminal.

The digits of a number depend on the width of its interval.
"""

from __future__ import annotations

from clipmerge.planning.measurements import BackoffChoice
from clipmerge.planning.plan import Plan
from clipmerge.planning.record import Estimate, Findings, Verdict
from clipmerge.types import Json

# Intervals whose half is wider than this share are shown in whole points.
_COARSE = 0.05
# A smaller share would be rounded to 0 points.
_SHOWN = 0.005

#: Where the accuracy is that answers each question.
QUESTIONS = {"shift": "under shift", "task": "on other tasks"}
#: A table: its headings, and its rows.
Table = tuple[list[str], list[list[str]]]


def decision_sentence(plan: Plan, measured: Findings | None = None) -> str:
    """How far the layers move, how many have a mask and, given the findings, why."""
    layers = plan.layers.values()
    ends = [end for layer in layers for end in layer.alpha_range or (layer.alpha,)]
    low, high = min(ends), max(ends)
    far = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    target = "fine-tuned"
    if len(plan.finetuned) > 1:
        rule = plan.recipe.method["name"] if plan.combine else "weighted sum"
        target = f"the {rule} of {len(plan.finetuned)} models"
    text = f"The layers go {far} of the way from zero-shot to {target}"
    if any(layer.is_learned for layer in layers):
        text += ", each weight as far as was learned"
    masks = [layer.mask for layer in layers if layer.mask]
    if masks:
        text += f"; {len(masks)} of {len(layers)} have a mask ({', '.join(sorted(set(masks)))})"
    reasons = [measured.decision] if measured and measured.decision else []
    if measured and measured.choice:
        reasons.append(_choice_sentence(measured.choice))
    if reasons:
        reason = "; ".join(reasons)
        text = f"{reason[0].upper()}{reason[1:]}. {text}"
    return f"{text}."


def _choice_sentence(choice: BackoffChoice) -> str:
    """The point that held-out images chose, and why."""
    images = f"{choice.images} held-out images"
    if choice.backoff == 1:
        return f"{images} chose the fine-tuned model: nothing learned surely keeps the accuracy"
    way = "take all that was learned"
    if choice.backoff:
        way = f"go back {choice.backoff:.0%} of the way to fine-tuned"
    return f"{images} chose to {way}, which keeps the accuracy"


def share_text(estimate: Estimate) -> str:
    """A share in per cent.

    Example:
        >>> share_text(Estimate(value=0.758, interval=(0.66, 0.83)))
        '76'
        >>> share_text(Estimate(value=0.758, interval=(0.72, 0.79)))
        '75.8'
    """
    digits = _decimals_of(estimate)
    return f"{100 * estimate.value:.{digits}f}"


def gain_text(difference: Estimate) -> str:
    """A difference in points with its interval.

    Example:
        >>> gain_text(Estimate(value=0.019, interval=(-0.067, 0.104)))
        '+2 [-7, +10]'
        >>> gain_text(Estimate(value=0.06, interval=(0.002, 0.118)))
        '+6.0 [+0.2, +11.8]'
    """
    digits = _decimals_of(difference)
    if any(0 < abs(end) < _SHOWN for end in difference.interval):
        digits = 1
    value, low, high = (signed(share, digits) for share in (difference.value, *difference.interval))
    return f"{value} [{low}, {high}]"


def signed(share: float, digits: int = 1) -> str:
    """A difference in points with its sign.

    Example:
        >>> signed(0.0123), signed(-0.0001)
        ('+1.2', '0.0')
    """
    text = f"{100 * share:+.{digits}f}"
    return text if float(text) else text[1:]


def _decimals_of(estimate: Estimate) -> int:
    low, high = estimate.interval
    return 0 if (high - low) / 2 > _COARSE else 1


def verdict_table(verdict: Verdict) -> Table:
    """A row for each source: accuracy of each model, and gain of the merge over fine-tuned."""
    target = verdict.target
    compared = {
        f"{target.source}, {target.images:,} images": target,
        "the same, corrupted": verdict.corrupted,
    }
    for source in verdict.ood:
        compared[f"{source.name}, {source.images:,} images"] = source
    rows = [
        [name, *map(share_text, source.models.values()), gain_text(source.gain)]
        for name, source in compared.items()
    ]
    title = "recall at 1, %" if target.recall else "accuracy, %"
    return [title, *target.models, "gain"], rows


def recipes_and_points(record: Json) -> list[Json]:
    """The rows of a sweep that are not on the curve: recipes, then checkpoints."""
    return [*record["recipes"], *record.get("points", [])]
