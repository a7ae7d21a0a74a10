"""Sentences and tables about a merge, for the model card, the HTML page and the terminal."""

from __future__ import annotations

from clipmerge.planning.measurements import BackoffChoice
from clipmerge.planning.plan import Plan
from clipmerge.planning.record import Findings, Verdict
from clipmerge.types import Json

_NOT_JUDGED = (
    "Not judged: labelled images, as `data` of `merge`, show what this merge keeps and loses."
)
#: The record of merges without images. The figures are those of `benchmarks/results`.
WITHOUT_IMAGES = (
    "On 24 pairs of real pictures, plain interpolation at alpha 0.5 changed the accuracy on the"
    " target by -25.5 to +2.0 points, and by -7.1 on average."
)
#: A table: its headings, and its rows.
Table = tuple[list[str], list[list[str]]]


def decision_sentence(plan: Plan, measured: Findings | None = None) -> str:
    """Say how far the layers move, how many have a mask and, if the findings are given, why."""
    layers = plan.layers.values()
    ends = [end for layer in layers for end in layer.alpha_range or (layer.alpha,)]
    low, high = min(ends), max(ends)
    far = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    target = "fine-tuned"
    if len(plan.finetuned) > 1:
        rule = plan.recipe.method["name"] if plan.combine else "weighted sum"
        target = f"the {rule} of {len(plan.finetuned)} models"
    text = f"The layers go {far} of the way from zero-shot to {target}"
    if any(layer.is_learned for layer in layers):
        text += ", each weight as far as was learned"
    masks = [layer.mask for layer in layers if layer.mask]
    if masks:
        text += f"; {len(masks)} of {len(layers)} have a mask ({', '.join(sorted(set(masks)))})"
    reasons = [measured.decision] if measured and measured.decision else []
    if measured and measured.choice:
        reasons.append(_choice_sentence(measured.choice))
    if reasons:
        reason = "; ".join(reasons)
        text = f"{reason[0].upper()}{reason[1:]}. {text}"
    return f"{text}."


def unjudged_sentence(plan: Plan) -> str:
    """Say that a merge is not judged and, if it used no images, what such merges did elsewhere."""
    if plan.recipe.measure:
        return _NOT_JUDGED
    return f"{_NOT_JUDGED} {WITHOUT_IMAGES}"


def _choice_sentence(choice: BackoffChoice) -> str:
    """Say which point held-out images chose, and why."""
    images = f"{choice.images} held-out images"
    if choice.backoff == 1:
        return f"{images} chose the fine-tuned model: nothing learned surely keeps the accuracy"
    way = "take all that was learned"
    if choice.backoff:
        way = f"go back {choice.backoff:.0%} of the way to fine-tuned"
    return f"{images} chose to {way}, which keeps the accuracy"


def verdict_table(verdict: Verdict) -> Table:
    """Make a table with a row per source: accuracy of each model, and merged minus fine-tuned."""
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
    return [*record["recipes"], *record.get("points", [])]
