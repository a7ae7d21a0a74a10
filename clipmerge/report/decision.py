"""The sentences about what was decided: what was found first, and what the settings are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clipmerge.output.record import Measured
from clipmerge.planning.measurements import HeldBackChoice
from clipmerge.planning.plan import Plan


def decision_sentence(plan: Plan, measured: Measured) -> str:
    """What was found before deciding, in full, and the settings."""
    parts = [measured.decision, _losses(measured.trace)]
    if measured.choice:
        parts.append(_choice(measured.choice))
    text = "; ".join(filter(None, [*parts, settings_sentence(plan)]))
    return text[:1].upper() + text[1:]


def settings_sentence(plan: Plan) -> str:
    """How far the layers go, and which have a mask."""
    entries = list(plan.layers.values())
    ends = [end for entry in entries for end in (entry.alpha_range or (entry.alpha,))]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    way = "of the way from zero-shot to fine-tuned"
    if len(plan.finetuned) > 1:
        rule = plan.combine.rule if plan.combine else "weighted sum"
        way = f"of the way from zero-shot to the {rule} of {len(plan.finetuned)} models"
    if low == high:
        text = f"Every layer goes {high:.4g} {way}"
    elif any(entry.alpha_range for entry in entries):
        text = f"The weights go {low:.4g} to {high:.4g} {way}, each as far as was learned"
    else:
        text = f"The layers go {low:.4g} to {high:.4g} {way}"
    masked = [entry for entry in entries if entry.mask]
    if masked:
        rules = ", ".join(sorted({str(entry.mask) for entry in masked}))
        text += f"; {len(masked)} of {len(entries)} layers have a mask ({rules})"
    return f"{text}."


def _losses(trace: Mapping[str, Sequence[float]]) -> str:
    """The losses in the first and in the last tenth of learning."""
    parts = []
    for name, values in trace.items():
        if any(values):
            tenth = max(1, len(values) // 10)
            first, last = sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth
            parts.append(f"{name.replace('_', ' ')} from {first:.3f} to {last:.3f}")
    return f"{', '.join(parts)} nats while learning" if parts else ""


def _choice(choice: HeldBackChoice) -> str:
    """How far held-out images let the merge go."""
    if choice.alpha is not None:
        chosen = "the fine-tuned model" if choice.alpha == 1 else f"alpha {choice.alpha:.3g}"
        return f"{choice.images} images chose {chosen}: nothing learned surely keeps the accuracy"
    if choice.extrapolation:
        way = f"go back {choice.extrapolation:.0%} of the way to fine-tuned"
    else:
        way = "take all that was learned"
    return f"{choice.images} held-out images chose to {way}, which keeps the accuracy"
