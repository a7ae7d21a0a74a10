"""The measured effect of a merge in readable form, the same for page, card and terminal."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from clipmerge.planning.merge_effect import Estimate, MergeEffect, ModelAccuracy
from clipmerge.planning.plan import STALE

#: Shown if there were no images.
UNMEASURED = (
    "Nothing was measured on images, so the effect of this merge is not known; give labelled images of your task with "
    "--data to measure it."
)
#: Shown if the decision saw all images.
UNVERIFIED = (
    "The effect of this merge was not measured on images that the decision did not see, so it is not known; "
    "`clipmerge evaluate` measures it on images of yours."
)
#: Shown if the plan is `STALE`.
UNKNOWN_SINCE = (
    "The plan was edited after it was measured, so its effect is not known; `clipmerge evaluate` measures it again."
)


def unmeasured(*, with_images: bool, warnings: Collection[str] = ()) -> str:
    """Say why a merge has no measured effect."""
    if STALE in warnings:
        return UNKNOWN_SINCE
    return UNVERIFIED if with_images else UNMEASURED


@dataclass(frozen=True)
class Row:
    """One model of the table; its accuracies in per cent, those on several kinds of images with intervals."""

    model: str
    clean: str
    corrupted: str
    related: str
    corruptions: tuple[str, ...]


@dataclass(frozen=True)
class EffectView:
    """The content of a page or a card."""

    verdict: str
    reason: str
    facts: str  # about the images of the measurement
    corruptions: tuple[str, ...]  # their names, unrelated ones first
    explanation: str  # of the corruptions
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]


def effect_view(bought: MergeEffect) -> EffectView:
    """Format the measured effect of a merge."""
    compared = f"fine-tuned {bought.reference + 1}"
    models = {
        f"{name} (compared with)" if name == compared else name: accuracy for name, accuracy in bought.models.items()
    }
    unrelated = ", ".join(name for name in bought.merged.corruptions if name not in bought.related)
    explanation = (
        f"Each image was seen under {bought.corruptions_per_image} of the generic corruptions {unrelated}, of kinds "
        f"that no recipe learns from, and under {bought.related_per_image} of the related ones "
        f"{', '.join(bought.related)}, stronger forms of changes that auto learns from; the verdict does not rest on "
        "those."
    )
    return EffectView(
        verdict=bought.verdict,
        reason=bought.reason,
        facts=_facts(bought),
        corruptions=tuple(bought.merged.corruptions),
        explanation=explanation,
        rows=tuple(_row(name, accuracy) for name, accuracy in models.items()),
        warnings=bought.warnings,
    )


def _facts(bought: MergeEffect) -> str:
    facts = (
        f"On {_percent(bought.agreement)}% of these {bought.images} images the merged and the zero-shot model agree."
    )
    counts = ((bought.classes_without_images, "no image"), (bought.classes_with_one_image, "one image"))
    rare = [f"{count} {'has' if count == 1 else 'have'} {number}" for count, number in counts if count]
    return " ".join([facts, *([f"Of {bought.classes} classes, {' and '.join(rare)} among them."] if rare else [])])


def _row(name: str, accuracy: ModelAccuracy) -> Row:
    return Row(
        model=name,
        clean=_with_interval(accuracy.clean),
        corrupted=_with_interval(accuracy.corrupted),
        related=_with_interval(accuracy.related),
        corruptions=tuple(_percent(estimate) for estimate in accuracy.corruptions.values()),
    )


def _with_interval(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{_percent(estimate)} [{100 * low:.1f}, {100 * high:.1f}]"


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f}"
