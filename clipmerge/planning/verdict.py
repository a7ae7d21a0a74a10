"""The verdict: one sentence that describes a plan as it will be applied.

A method describes its own decision. Overrides of the recipe and edits by hand come later, so its sentence is stored
with a digest of the settings that it describes. If the settings have changed, a new sentence is made from them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from clipmerge.errors import counted
from clipmerge.planning.layer_plan import Combination, LayerPlan, LearnedAlpha


def verdict_on(
    layers: Mapping[str, LayerPlan],
    names: Collection[str],
    weights: Sequence[float],
    combine: Combination | None,
    *,
    finding: str = "",
) -> str:
    """Make a verdict from the settings alone."""
    entries = [layers[name] for name in names if name in layers]
    parts = [finding, _distance(entries, len(names) - len(entries), _target(weights, combine))]
    masked = [entry for entry in entries if entry.mask]
    if masked:
        rules = ", ".join(sorted({str(entry.mask) for entry in masked}))
        densities = sorted({entry.density for entry in masked})
        ends = [f"{density:g}" for density in dict.fromkeys((densities[0], densities[-1]))]
        shares = "" if densities == [1.0] else f", density {' to '.join(ends)}"
        layers_have = counted(len(masked), f"of {len(names)} layers has", f"of {len(names)} layers have")
        parts.append(f"{layers_have} a mask ({rules}{shares})")
    return "; ".join(part for part in parts if part)


def _distance(entries: Sequence[LayerPlan], rest: int, target: str) -> str:
    coefficients = [entry.coefficient for entry in entries]
    learned = [coefficient for coefficient in coefficients if isinstance(coefficient, LearnedAlpha)]
    ends = [coefficient for coefficient in coefficients if not isinstance(coefficient, LearnedAlpha)]
    ends += [end for coefficient in learned for end in (coefficient.low, coefficient.high)]
    ends += [0.0] * bool(rest)
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    way = f"of the way from zero-shot to {target}"
    if low == high:
        return "every layer stays zero-shot" if high == 0 else f"every layer goes {high:g} {way}"
    kind = "coefficients go" if learned else "layers go"
    they_stay = counted(rest, "layer that the plan does not name stays", "layers that the plan does not name stay")
    left = f", and {they_stay} zero-shot" if rest else ""
    return f"the {kind} {low:g} to {high:g} {way}{left}"


def _target(weights: Sequence[float], combine: Combination | None) -> str:
    count = len(weights)
    if combine:
        return f"the {combine.rule} combination of {count} fine-tuned model{'s' if count > 1 else ''}"
    if count == 1:
        return "the fine-tuned model" if weights[0] == 1 else f"{weights[0]:g} times the fine-tuned change"
    if all(weight == 1 / count for weight in weights):
        return f"the average of {count} fine-tuned models"
    return f"the sum of {count} fine-tuned changes weighted {', '.join(f'{weight:g}' for weight in weights)}"
