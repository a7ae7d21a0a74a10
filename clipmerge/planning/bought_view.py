"""What the merge bought, laid out for people: a page, a card and a terminal show the same."""

from __future__ import annotations

from dataclasses import dataclass

from clipmerge.planning.bought import Bought, Estimate, ModelAccuracy

#: What is said where nothing was measured.
UNMEASURED = (
    "Nothing was measured on images, so what this merge bought is not known; give labelled images of your task with "
    "--data to see."
)


@dataclass(frozen=True)
class Row:
    """One model of the table, its accuracies in per cent.

    Attributes:
        model: Which model.
        clean: On the images as they are, with its interval.
        corrupted: Under the robustness probe, with its interval.
        corruptions: Under each corruption.
    """

    model: str
    clean: str
    corrupted: str
    corruptions: tuple[str, ...]


@dataclass(frozen=True)
class BoughtView:
    """What a page or a card shows.

    Attributes:
        verdict: The numbers that matter and the recommendation.
        reason: What the recommendation rests on.
        facts: On what it was measured, in a sentence.
        corruptions: Names of the corruptions, the columns of the table.
        rows: The models.
        warnings: What the user should know.
    """

    verdict: str
    reason: str
    facts: str
    corruptions: tuple[str, ...]
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]


def bought_view(bought: Bought) -> BoughtView:
    """Lay out what a merge bought."""
    names = ["fine-tuned"]
    if len(bought.finetuned) > 1:
        names = [f"fine-tuned {number}" for number in range(1, len(bought.finetuned) + 1)]
        names[bought.reference] += " (compared with)"
    models = [("zero-shot", bought.zeroshot), *zip(names, bought.finetuned, strict=True), ("merged", bought.merged)]
    return BoughtView(
        verdict=bought.verdict,
        reason=bought.reason,
        facts=_facts(bought),
        corruptions=tuple(bought.merged.corruptions),
        rows=tuple(_row(name, accuracy) for name, accuracy in models),
        warnings=bought.warnings,
    )


def _facts(bought: Bought) -> str:
    facts = (
        f"Measured on {bought.images} images that the decision did not see; on {_percent(bought.agreement)}% of them "
        "the merged and the zero-shot model agree."
    )
    rare = [
        f"{count} of {bought.classes} classes {have}"
        for count, have in (
            (bought.classes_without_images, "have no image among them"),
            (bought.classes_with_one_image, "have one"),
        )
        if count
    ]
    return " ".join([facts, *([f"{' and '.join(rare)}."] if rare else [])])


def _row(name: str, accuracy: ModelAccuracy) -> Row:
    return Row(
        model=name,
        clean=_with_interval(accuracy.clean),
        corrupted=_with_interval(accuracy.corrupted),
        corruptions=tuple(_percent(estimate) for estimate in accuracy.corruptions.values()),
    )


def _with_interval(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{_percent(estimate)} [{100 * low:.1f}, {100 * high:.1f}]"


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f}"
