"""Sentences and tables about a merge, for the model card, the HTML page and the terminal."""

from __future__ import annotations

from clipmerge.planning.measurements import BackoffChoice
from clipmerge.planning.plan import Plan
from clipmerge.planning.record import Findings, Verdict
from clipmerge.types import Json

_NOT_JUDGED = (
    "Not judged: labelled images, as `data` of `merge`, show what this merge keeps and loses."
)
#: Results of other merges without images, from `benchmarks/results`.
WITHOUT_IMAGES = (
    "On 24 pairs of real pictures, plain interpolation at alpha 0.5 changed the accuracy on the"
    " target by -25.5 to +2.0 points, and by -7.1 on average."
)
#: A table: its headings, and its rows.
Table = tuple[list[str], list[list[str]]]


def decision_sentence(plan: Plan, measured: Findings | None = None) -> str:
    """Describe the settings of a plan and, if the findings are given, their reasons."""
    reasons = []
    if measured and measured.decision:
        reasons.append(measured.decision)
    if measured and measured.choice:
        reasons.append(_choice_sentence(measured.choice))
    reason = "; ".join(reasons)
    why = f"{reason[0].upper()}{reason[1:]}. " if reason else ""
    return f"{why}{plan._caption()}."


def unjudged_sentence(plan: Plan) -> str:
    """Say that a merge is not judged. If it used no images, cite results of other such merges."""
    if plan.recipe.measure:
        return _NOT_JUDGED
    return f"{_NOT_JUDGED} {WITHOUT_IMAGES}"


def _choice_sentence(choice: BackoffChoice) -> str:
    """Report the choice of the held-out images, with its reason."""
    images = f"{choice.images} held-out images"
    if choice.backoff == 1:
        return f"{images} chose the fine-tuned model: nothing learned surely keeps the accuracy"
    way = "take all that was learned"
    if choice.backoff:
        way = f"go back {choice.backoff:.0%} of the way to fine-tuned"
    return f"{images} chose to {way}, which keeps the accuracy"


def verdict_table(verdict: Verdict) -> Table:
    """Make a table with a row per source: the accuracy of each model, and the change by merging."""
    target = verdict.target
    compared = {
        f"{target.source}, {target.images:,} images": target,
        "the same, corrupted": verdict.corrupted,
    }
    for source in verdict.ood:
        compared[f"{source.name} ({source.question}), {source.images:,} images"] = source
    rows = [
        [name, *(each.as_share() for each in source.models.values()), source.change.as_difference()]
        for name, source in compared.items()
    ]
    title = "recall at 1, %" if target.recall else "accuracy, %"
    return [title, *target.models, "change"], rows


def recipes_and_points(record: Json) -> list[Json]:
    """Return the rows of a sweep that are not on the curve: recipes, then checkpoints."""
    return [*record["recipes"], *record["points"]]
