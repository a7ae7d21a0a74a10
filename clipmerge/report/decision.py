"""The sentence about what was decided: how far the layers go, and why."""

from __future__ import annotations

from clipmerge.planning.measurements import HeldBackChoice
from clipmerge.planning.plan import Plan
from clipmerge.planning.record import Measured


def decision_sentence(plan: Plan, measured: Measured | None = None) -> str:
    """How far the layers go, and which have a mask; before it what was found, if it is given."""
    layers = plan.layers.values()
    ends = [layer.alpha_range or (layer.alpha, layer.alpha) for layer in layers]
    low = min(start for start, _ in ends)
    high = max(end for _, end in ends)
    target = "fine-tuned"
    if len(plan.finetuned) > 1:
        rule = plan.combine.rule if plan.combine else "weighted sum"
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
        text += f"; {len(masks)} of {len(layers)} have a mask ({rules})"
    found = []
    if measured and measured.decision:
        found.append(measured.decision)
    if measured and measured.choice:
        found.append(_choice(measured.choice))
    if found:
        reasons = "; ".join(found)
        begin = reasons[:1].upper()
        text = f"{begin}{reasons[1:]}. {text}"
    return f"{text}."


def _choice(choice: HeldBackChoice) -> str:
    """How far held-out images let the merge go."""
    images, why = f"{choice.images} held-out images", "which keeps the accuracy"
    if choice.ood_images:
        images += f" and {choice.ood_images} of a shift"
        why = "the best under the shift that keeps the accuracy"
    if choice.alpha is not None:
        why = "nothing learned is better there" if choice.ood_images else "nothing learned"
        return f"{images} chose the fine-tuned model: {why} and surely keeps the accuracy"
    way = "take all that was learned"
    if choice.extrapolation:
        way = f"go back {choice.extrapolation:.0%} of the way to fine-tuned"
    return f"{images} chose to {way}, {why}"
