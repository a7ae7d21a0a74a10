"""The sentences about what was decided: what was found first, and what the settings are."""

from __future__ import annotations

from collections.abc import Sequence

from clipmerge.output.record import Measured
from clipmerge.planning.measurements import HeldBackChoice
from clipmerge.planning.plan import Plan


def decision_sentence(plan: Plan, measured: Measured) -> str:
    """What was found before deciding, in full, and the settings."""
    found = []
    if measured.decision:
        found.append(measured.decision)
    for name, losses in measured.trace.items():
        if any(losses):
            found.append(_loss(name.replace("_", " "), losses))
    if measured.choice:
        found.append(_choice(measured.choice))
    settings = settings_sentence(plan)
    if not found:
        return settings
    text = "; ".join(found)
    return f"{text[:1].upper()}{text[1:]}. {settings}"


def settings_sentence(plan: Plan) -> str:
    """How far the layers go, and which have a mask."""
    layers = plan.layers.values()
    low = min(layer.alpha_range[0] if layer.alpha_range else layer.alpha for layer in layers)
    high = max(layer.alpha_range[1] if layer.alpha_range else layer.alpha for layer in layers)
    target = "fine-tuned"
    if len(plan.finetuned) > 1:
        rule = plan.combine.rule if plan.combine else "weighted sum"
        target = f"the {rule} of {len(plan.finetuned)} models"
    way = f"of the way from zero-shot to {target}"
    if low == high:
        text = f"Every layer goes {high:.4g} {way}"
    elif any(layer.is_learned for layer in layers):
        text = f"The weights go {low:.4g} to {high:.4g} {way}, each as far as was learned"
    else:
        text = f"The layers go {low:.4g} to {high:.4g} {way}"
    masks = [layer.mask for layer in layers if layer.mask]
    if masks:
        verb = "has" if len(masks) == 1 else "have"
        rules = ", ".join(sorted(set(masks)))
        text += f"; {len(masks)} of {len(layers)} layers {verb} a mask ({rules})"
    return f"{text}."


def _loss(name: str, values: Sequence[float]) -> str:
    """A loss in the first and in the last tenth of learning."""
    tenth = max(1, len(values) // 10)
    first = sum(values[:tenth]) / tenth
    last = sum(values[-tenth:]) / tenth
    return f"{name} from {first:.3f} to {last:.3f} nats while learning"


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
