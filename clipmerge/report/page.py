"""The report of a merge: one HTML page, from the record alone.

First the effect of the merge and whether to use it, then why: what was learned or measured, layer
by layer. Nothing is measured or read here, and two equal merges give byte-identical pages, without
``output``, ``seconds`` and the time of day. There is no section for what was not measured or looked
for.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from clipmerge.output.record import MergeRecord
from clipmerge.planning.measurements import takes_learned
from clipmerge.report.effect_plot import DRAWN, effect_plot
from clipmerge.report.layer_table import Column, columns_of, layer_table
from clipmerge.report.prose import minus, page_of
from clipmerge.report.text import (
    ADVICE,
    EXPLANATION,
    HEADS,
    effect_facts,
    effect_rows,
    headline,
    other_task_rows,
    reason_text,
    texts_of,
    unmeasured,
)

TOLERANCE = 0.01  # the completeness checks' promise: sums within 1% of what was measured

_TOWERS = {
    "vision": "Vision tower",
    "text": "Text tower",
    "head": "Classification head",
    "logit_scale": "Logit scale",
    "logit_bias": "Logit bias",
}
_CHECKS = {
    "barrier": "Barrier: loss at alpha 0.5 minus the endpoints' average",
    "loss_drop": "Loss drop: loss at alpha 1 minus loss at alpha 0",
}


def html_page(record: MergeRecord) -> str:
    """Render the whole report as one HTML page that loads nothing from the network."""
    columns = columns_of(record)
    recommendation = record.effect.recommendation if record.effect else None
    values = {
        "record": record,
        "headline": headline(record),
        "reason": record.effect and reason_text(record.effect),
        "warnings": texts_of(record.warnings),
        "effect_facts": record.effect and effect_facts(record.effect),
        "effect_rows": record.effect and effect_rows(record.effect),
        "unmeasured": unmeasured(
            with_images=record.calibration is not None, warnings=record.warnings
        ),
        "answer": {
            "label": ADVICE[recommendation] if recommendation else "Not measured",
            "kind": (
                {
                    "use": "yes",
                    "prefer-finetuned": "no",
                    "prefer-zeroshot": "no",
                    "check-names": "no",
                    "check-models": "no",
                }.get(recommendation or "", "open")
            ),
        },
        "plot": effect_plot(record),
        "other_tasks": _undrawn_scores(record),
        "other_tasks_heads": HEADS,
        "other_tasks_explanation": EXPLANATION,
        "facts": _facts(record, columns[0]),
        "why": _pictures(record),
        "table": layer_table(record, columns, _TOWERS),
        "check_titles": _CHECKS,
        "tolerance": TOLERANCE,
        "command": _command(record),
        "hashes": _hashes(record),
    }
    return page_of("report.html.j2", values)


def _undrawn_scores(record: MergeRecord) -> list[tuple[str, list[str]]]:
    """Task and cells of each score on other tasks that the plot leaves out."""
    rows, task = [], ""
    for name, *cells in other_task_rows(record.other_tasks):
        task = name or task
        if cells[0] not in DRAWN:  # the name of the number
            rows.append((task, cells))
    return rows


def card_picture(record: MergeRecord) -> bytes | None:
    """Draw the loss on the path for the model card."""
    if record.path is None:
        return None
    from clipmerge.report.merge_pictures import path_png

    return path_png(record.path)


def _pictures(record: MergeRecord) -> list[Any]:
    """Pictures of the whole model's measurements; importing matplotlib takes longer than a small
    merge.
    """
    if not (record.path or record.trace or record.coefficients):
        return []
    from clipmerge.report.merge_pictures import pictures_of

    return pictures_of(record, _TOWERS)


def _hashes(record: MergeRecord) -> list[tuple[str, str, str]]:
    rows = [(role, model.files) for role, model in record.checkpoints]
    rows.append(("merged", record.files))
    return [
        (role, name, files[name] or "not hashed") for role, files in rows for name in sorted(files)
    ]


def _facts(record: MergeRecord, alpha: Column) -> list[tuple[str, str]]:
    """The few numbers that a reader looks for first: names and values."""
    layers = record.layers
    facts = [("layers", f"{len(layers)}")]
    if record.looked_for_stragglers:
        found = len(record.found_stragglers)
        facts.append(
            ("straggler layers" if found != 1 else "straggler layer", f"{found or 'none'}")
        )
    learned = tuple(layer for layer, entry in layers.items() if entry.alpha_range)
    taken = takes_learned(record.trace, record.choice)
    name = "mean of a layer's learned coefficients" if learned and taken else "coefficient alpha"
    alphas = [layers[layer].alpha for layer in learned or layers]
    low, high = (minus(alpha.text(end(alphas))) for end in (min, max))
    facts.append((name, low if low == high else f"{low} to {high}"))
    if record.coefficients and taken:
        facts.append(
            (
                "weights with a learned coefficient",
                f"{sum(map(sum, record.coefficients.values())):,}",
            )
        )
        back = [
            (entry.size or 0, entry.zeroshot_share)
            for entry in layers.values()
            if entry.zeroshot_share is not None
        ]
        facts += [("of these at zero-shot", _mean(back))] * any(share for _, share in back)
    if any(entry.mask for entry in layers.values()):
        kept = [
            (entry.size or 0, entry.density) for entry in layers.values() if entry.alpha
        ]  # others do not change
        facts.append(("of the change kept by masks", _mean(kept)))
    if record.path and (barrier := record.path.barrier):
        facts.append(
            ("barrier at alpha 0.5", f"{barrier[0]:.3f} nats" if barrier[0] > 0 else "none")
        )
    return facts


def _mean(shares: Sequence[tuple[int, float]]) -> str:
    """The mean of layers' shares, weighted by their sizes, in per cent."""
    total = max(1, sum(size for size, _ in shares))
    return f"{100 * sum(size * share for size, share in shares) / total:.3g}%"


def _command(record: MergeRecord) -> str:
    """The command that repeats this merge, given the recipe saved as a file."""
    words = [
        "clipmerge",
        "merge",
        *(model.pinned for _, model in record.checkpoints),
        "--recipe",
        "recipe.yaml",
    ]
    images = record.calibration
    if images:
        words += ["--data", images.source, "--images", str(images.requested or images.images)]
        words += ["--unlabelled", images.unlabelled.source] if images.unlabelled else []
        words += ["--batch-size", str(images.batch_size), "--seed", str(images.seed)]
        words += [] if images.requested else ["--no-verdict"]  # no images were held back
    return shlex.join([*words, "--output", "merged"])
