"""The report of a merge: one HTML page, from the record alone.

Nothing is measured or read here. Two equal merges give byte-identical pages: ``output``, ``seconds`` and the clock are
left out.
"""

from __future__ import annotations

import shlex
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

from clipmerge.files.templates import render
from clipmerge.output.record import MergeRecord
from clipmerge.planning.bought_view import UNMEASURED, bought_view
from clipmerge.report.columns import Column, columns_of
from clipmerge.report.numbers import is_number
from clipmerge.report.path_chart import HEIGHT, WIDTH, barrier_of, path_chart, path_points

TOLERANCE = 0.01  # promise of the completeness checks: sums within 1% of the measured total

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
    """Render the whole report as one HTML page that loads nothing from the network.

    Args:
        record: The merge's record.

    Returns:
        The page. Records that are equal except for ``output`` and ``seconds`` give equal bytes.
    """
    columns = columns_of(record)
    values = {
        "version": record.clipmerge,
        "recipe_name": record.recipe.name,
        "verdict": record.headline,
        "bought": bought_view(record.bought) if record.bought else None,
        "unmeasured": UNMEASURED,
        "warnings": record.warnings,
        "data_free": record.is_data_free,
        "models": record.checkpoints,
        "calibration": record.calibration,
        "facts": _facts(record, columns),
        "chart": path_chart(record.path),
        "chart_size": (WIDTH, HEIGHT),
        "columns": columns,
        "strips": _strips(columns),
        "layer_names": list(record.layers),
        "groups": _groups(record, columns),
        "usual_reason": Counter(entry.reason for entry in record.layers.values()).most_common(1)[0][0],
        "has_masks": any(entry.mask for entry in record.layers.values()),
        "stragglers": record.found_stragglers,
        "straggler_rule": _straggler_rule(record),
        "looked_for_stragglers": record.looked_for_stragglers,
        "checks": _checks(record),
        "tolerance": TOLERANCE,
        "recipe_yaml": record.recipe.to_yaml(),
        "command": _command(record),
        "hashes": _hashes(record),
    }
    template = Path(__file__).parent / "templates" / "report.html.j2"
    return render(template, values, html=True, filters={"minus": _with_minus_signs})


def _with_minus_signs(text: object) -> str:
    return str(text).replace("-", "\N{MINUS SIGN}")


def _hashes(record: MergeRecord) -> list[tuple[str, str, str]]:
    rows = [(role, model.files) for role, model in record.checkpoints]
    rows.append(("merged", record.files))
    return [(role, name, files[name] or "not hashed") for role, files in rows for name in sorted(files)]


def _facts(record: MergeRecord, columns: list[Column]) -> list[tuple[str, str]]:
    """The few numbers that a reader looks for first, each with its name."""
    layers = record.layers
    facts = [("layers", f"{len(layers)}")]
    if record.looked_for_stragglers:
        facts.append(("straggler layers", f"{len(record.found_stragglers) or 'none'}"))
    facts.append(("coefficient alpha", columns[0].span(tuple(layers)).replace("-", " to ")))
    size = sum(entry.size or 0 for entry in layers.values())
    if size:
        kept = sum((entry.size or 0) * entry.density for entry in layers.values()) / size
        facts.append(("of the task vector kept", f"{100 * kept:.3g}%"))
    found = barrier_of(path_points(record.path))
    if found:
        facts.append(("barrier at alpha 0.5", _with_minus_signs(f"{found[0]:+.3f} nats")))
    return facts


def _groups(record: MergeRecord, columns: list[Column]) -> list[dict[str, Any]]:
    """The layers by tower, each with its cells, and the totals of the tower."""
    stragglers = set(record.found_stragglers)
    groups = []
    for tower, members in groupby(record.layers, key=lambda layer: layer.partition(".")[0]):
        layers = list(members)
        rows = [
            {
                "layer": layer,
                "straggler": layer in stragglers,
                "cells": [_cell(column, layer) for column in columns],
                "mask": record.layers[layer].mask or "",
                "reason": record.layers[layer].reason,
            }
            for layer in layers
        ]
        sums = [(c.markup or c.title, c.text(c.total(layers)), c.unit) for c in columns if c.additive]
        size = sum(record.layers[layer].size or 0 for layer in layers)
        title = _TOWERS.get(tower, tower)
        groups.append({"title": title, "rows": rows, "count": len(layers), "size": size, "sums": sums})
    return groups


def _cell(column: Column, layer: str) -> dict[str, Any]:
    value = column.values.get(layer)
    start, length = column.scale.bar(value)
    negative = is_number(value) and value < 0
    return {"text": column.text(value), "start": start, "length": length, "negative": negative}


def _strips(columns: list[Column]) -> list[Column]:
    """Columns of the overview: alpha and the first two statistics."""
    measured = [column for column in columns if column.kind == "statistic"]
    first = [column for column in measured if column.key != "change"] or measured
    return [columns[0], *first[:2]]


def _straggler_rule(record: MergeRecord) -> str:
    """Explain the straggler rule: the outlier rule records z-scores, other rules give a reason per layer."""
    if any("z" in scores for scores in record.straggler_scores.values()):
        return (
            "a layer whose statistic stands out from the other layers by a robust outlier rule, and does so in nearly "
            "every bootstrap resample of the calibration batches."
        )
    return (
        f"a layer that the method singled out by its {record.straggler_statistic or 'statistic'}; its reason says why."
    )


def _checks(record: MergeRecord) -> list[dict[str, Any]]:
    """Each completeness check with its relative difference (absolute if zero was measured)."""
    rows = []
    for name, check in record.checks.items():
        total, measured = check.sum_of_layers, check.measured
        relative = abs(total - measured) / (abs(measured) or 1.0)
        title = _CHECKS.get(name, name.replace("_", " "))
        good = relative <= TOLERANCE
        rows.append({"title": title, "total": total, "measured": measured, "relative": relative, "good": good})
    return rows


def _command(record: MergeRecord) -> str:
    """The command that repeats this merge, given the recipe saved as a file."""
    sources = []
    for _, model in record.checkpoints:
        # a revision named by the user already follows an @
        base = model.source.partition("@")[0]
        sources.append(f"{base}@{model.revision}" if model.revision else model.source)
    words = ["clipmerge", "merge", *sources, "--recipe", "recipe.yaml"]
    images = record.calibration
    if images:
        words += ["--data", images.source, "--images", str(images.requested or images.images)]
        words += ["--batch-size", str(images.batch_size), "--seed", str(images.seed)]
        words += [] if images.requested else ["--no-verdict"]  # no images were held back
    return shlex.join([*words, "--output", "merged"])
