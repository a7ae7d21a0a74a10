"""What card, page and terminal say of a merge: its settings, and its numbers with as many digits as
their interval deserves.
"""

from __future__ import annotations

from clipmerge.planning.measurements import BackoffChoice
from clipmerge.planning.plan import Plan
from clipmerge.planning.record import Estimate, Findings, Verdict
from clipmerge.types import Json

# Half the width of an interval, as a share, from which whole points are shown.
_COARSE = 0.05
# Smallest share that is not 0 in whole points.
_SHOWN = 0.005

#: A table: its headings, and its rows.
Table = tuple[list[str], list[list[str]]]


def decision_sentence(plan: Plan, measured: Findings | None = None) -> str:
    """How far the layers go, and which have a mask; before it what was found, if it is given."""
    layers = plan.layers.values()
    ends = [layer.alpha_range or (layer.alpha, layer.alpha) for layer in layers]
    low = min(start for start, _ in ends)
    high = max(end for _, end in ends)
    target = "fine-tuned"
    if len(plan.finetuned) > 1:
        rule = "weighted sum"
        if plan.combine:
            rule = plan.recipe.method["name"]
        target = f"the {rule} of {len(plan.finetuned)} models"
    far = f"{low:.4g}"
    if low < high:
        far += f" to {high:.4g}"
    text = f"The layers go {far} of the way from zero-shot to {target}"
    if any(layer.is_learned for layer in layers):
        text += ", each weight as far as was learned"
    masks = [layer.mask for layer in layers if layer.mask]
    if masks:
        rules = ", ".join(sorted(set(masks)))
        share = f"{len(masks)} of {len(layers)}"
        text += f"; {share} have a mask ({rules})"
    found = []
    if measured and measured.decision:
        found.append(measured.decision)
    if measured and measured.choice:
        found.append(_choice_sentence(measured.choice))
    if found:
        reasons = "; ".join(found)
        begin = reasons[:1].upper()
        text = f"{begin}{reasons[1:]}. {text}"
    return f"{text}."


def _choice_sentence(choice: BackoffChoice) -> str:
    """How far held-out images let the merge go."""
    images = f"{choice.images} held-out images"
    why = "which keeps the accuracy"
    if choice.ood_images:
        images += f" and {choice.ood_images} of a shift"
        why = "the best under the shift that keeps the accuracy"
    if choice.backoff == 1:
        nothing = "nothing learned surely keeps the accuracy"
        if choice.ood_images:
            nothing += " and is better there"
        return f"{images} chose the fine-tuned model: {nothing}"
    way = "take all that was learned"
    if choice.backoff:
        way = f"go back {choice.backoff:.0%} of the way to fine-tuned"
    return f"{images} chose to {way}, {why}"


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
    """A difference in points, with its interval, whose ends keep their signs.

    Example:
        >>> gain_text(Estimate(value=0.019, interval=(-0.067, 0.104)))
        '+2 [-7, +10]'
        >>> gain_text(Estimate(value=0.06, interval=(0.002, 0.118)))
        '+6.0 [+0.2, +11.8]'
    """
    low, high = difference.interval
    digits = _decimals_of(difference)
    if 0 < abs(low) < _SHOWN or 0 < abs(high) < _SHOWN:
        digits = 1
    value = signed(difference.value, digits)
    begin = signed(low, digits)
    end = signed(high, digits)
    return f"{value} [{begin}, {end}]"


def signed(share: float, digits: int = 1) -> str:
    """A difference in points with its sign.

    Example:
        >>> signed(0.0123), signed(-0.0001)
        ('+1.2', '0.0')
    """
    points = 100 * share
    text = f"{points:+.{digits}f}"
    if float(text) == 0:
        text = text[1:]
    return text


def _decimals_of(estimate: Estimate) -> int:
    low, high = estimate.interval
    half = (high - low) / 2
    return 0 if half > _COARSE else 1


def verdict_table(verdict: Verdict) -> Table:
    """The accuracies of the models by source, and what the merge gains over fine-tuned."""
    target = verdict.target
    compared = {
        f"{target.source}, {target.images:,} images": target,
        "the same, corrupted": verdict.corrupted,
    }
    for source in verdict.ood:
        images = f"{source.images:,} images"
        compared[f"{source.name}, {images}"] = source
    rows = []
    for name, comparison in compared.items():
        shares = map(share_text, comparison.models.values())
        gain = gain_text(comparison.gain)
        rows.append([name, *shares, gain])
    title = "accuracy, %"
    if target.recall:
        title = "recall at 1, %"
    heads = [title, *target.models, "gain"]
    return heads, rows


def recipes_and_points(record: Json) -> list[Json]:
    """The rows that are not points of the curve: recipes, then other checkpoints."""
    return [*record["recipes"], *record.get("points", [])]
