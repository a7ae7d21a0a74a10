"""Which targets and pairs there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.shifts.experiment import About
from benchmarks.shifts.photos.pairs import Spec, choose_pairs

#: The target on which recipes may be tuned, in both regimes.
TUNING = "signs"
TARGETS = (TUNING, "groceries", "aerial")
PAIRS = tuple(Spec(regime, target, 0) for target in TARGETS for regime in ("aggressive", "mild"))
ABOUT = About(
    name="natural",
    module="benchmarks.shifts.natural",
    title="Groceries, aerial pictures and traffic signs",
    note=Path(__file__).with_name("about.md"),
    pairs=tuple(spec.name for spec in PAIRS),
    models="EfficientNet-Lite that knows ImageNet",
)


def is_tuning(spec: Spec) -> bool:
    """Whether recipes may be tuned on it. The aggressive pairs of the other targets were looked at
    before those that choose and those that judge did both jobs, and were a reason for it.
    """
    return spec.target == TUNING or spec.regime == "aggressive"


def chosen_pairs(wanted: Sequence[str]) -> list[Spec]:
    """The pairs that are wanted, in order."""
    words = {
        spec: {spec.name, spec.regime, spec.target, "tuning" if is_tuning(spec) else "held-out"}
        for spec in PAIRS
    }
    return choose_pairs(words, wanted)
