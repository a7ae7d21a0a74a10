"""The measured effect of a merge in readable form, the same for page, card and terminal."""

from __future__ import annotations

from collections.abc import Collection

from clipmerge.errors import counted
from clipmerge.planning.merge_effect import Estimate, MergeEffect
from clipmerge.planning.plan import STALE

#: Shown if there were no images.
UNMEASURED = (
    "Nothing was measured on images, so the effect of this merge is not known; give labelled images"
    " of your task with --data to measure it."
)
#: Shown if the decision saw all images.
UNVERIFIED = (
    "The effect of this merge was not measured on images that the decision did not see, so it is"
    " not known; `clipmerge evaluate` measures it on images of yours."
)
#: Shown if the plan is `STALE`.
UNKNOWN_SINCE = (
    "The plan was edited after it was measured, so its effect is not known; `clipmerge evaluate`"
    " measures it again."
)


def unmeasured(*, with_images: bool, warnings: Collection[str] = ()) -> str:
    """Say why a merge has no measured effect."""
    if STALE in warnings:
        return UNKNOWN_SINCE
    return UNVERIFIED if with_images else UNMEASURED


def effect_facts(effect: MergeEffect) -> str:
    """Sentences about the images of the measurement."""
    facts = (
        f"The merged and the zero-shot model agree on {_percent(effect.agreement)}% of the images"
        f" ({effect.images})."
    )
    counts = (
        (effect.classes_without_images, "no image"),
        (effect.classes_with_one_image, "one image"),
    )
    rare = [counted(count, f"has {number}", f"have {number}") for count, number in counts if count]
    return " ".join(
        [
            facts,
            *([f"Of {effect.classes} classes, {' and '.join(rare)} among them."] if rare else []),
        ]
    )


def effect_explanation(effect: MergeEffect) -> str:
    """A sentence about the corruptions."""
    unrelated = ", ".join(name for name in effect.merged.corruptions if name not in effect.related)
    return (
        f"Each image was seen under {effect.corruptions_per_image} of the generic corruptions"
        f" {unrelated}, of kinds that no recipe learns from, and under {effect.related_per_image}"
        f" of the related ones {', '.join(effect.related)}, stronger forms of changes that auto"
        " learns from; the verdict does not rest on those."
    )


def effect_rows(effect: MergeEffect) -> list[list[str]]:
    """A row per model, in per cent: clean, under unrelated and related corruptions, and under each
    by itself.
    """
    compared = f"fine-tuned {effect.reference + 1}"
    return [
        [
            f"{name} (compared with)" if name == compared else name,
            *map(_with_interval, (model.clean, model.corrupted, model.related)),
            *map(_percent, model.corruptions.values()),
        ]
        for name, model in effect.models.items()
    ]


def _with_interval(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{_percent(estimate)} [{100 * low:.1f}, {100 * high:.1f}]"


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f}"
