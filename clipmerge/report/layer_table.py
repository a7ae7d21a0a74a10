"""The table of layers: neighbours with equal cells share a row, and columns with equal cells become a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from clipmerge.output.record import MergeRecord
from clipmerge.report.columns import Column
from clipmerge.report.prose import minus


def layer_table(record: MergeRecord, columns: Sequence[Column], towers: Mapping[str, str]) -> dict[str, Any]:
    """Lay out the table for the page."""
    layers = tuple(record.layers)
    differing = (c for c in columns if len({c.text(c.values.get(layer)) for layer in layers}) > 1)
    shown = tuple(differing) or tuple(columns[:1])
    masks = any(entry.mask for entry in record.layers.values())
    left_out = [column for column in columns if column not in shown and (masks or column.key != "density")]
    reasons = Counter(entry.reason for entry in record.layers.values())
    return {
        "columns": shown,  # those in which layers differ
        "equal": ", ".join(f"{c.title} {minus(c.text(c.values.get(layers[0])))}" for c in left_out),
        "towers": _towers(record, shown, towers),
        "reason": next(iter(reasons)) if len(reasons) == 1 else "",  # shared by all layers, and then without a column
        "usual_reason": reasons.most_common(1)[0][0],  # written only once if more than half of the layers share it
        "has_usual": len(reasons) > 1 and 2 * reasons.most_common(1)[0][1] > len(record.layers),
        "has_masks": masks,
    }


def _towers(record: MergeRecord, columns: Sequence[Column], towers: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows of each tower, and its totals."""
    found = []
    for tower, members in groupby(record.layers, key=lambda layer: layer.partition(".")[0]):
        layers = list(members)
        numbers = [(c, [c.values[layer] for layer in layers if layer in c.values]) for c in columns if c.additive]
        sums = [(column, sum(values)) for column, values in numbers if values]
        size = sum(record.layers[layer].size or 0 for layer in layers)
        title, rows = towers.get(tower, tower), _rows(record, columns, layers)
        found.append({"title": title, "rows": rows, "count": len(layers), "size": size, "sums": sums})
    return found


def _rows(record: MergeRecord, columns: Sequence[Column], layers: Sequence[str]) -> list[dict[str, Any]]:
    """A row per layer, or per neighbours with equal cells; a straggler has its own row."""
    stragglers = set(record.found_stragglers)

    def shown(layer: str) -> tuple[object, ...]:
        entry = record.layers[layer]
        texts = tuple(column.text(column.values.get(layer)) for column in columns)
        return (layer if layer in stragglers else "", entry.mask, entry.reason, texts)

    rows = []
    for _, group in groupby(layers, key=shown):
        members = tuple(group)
        entry = record.layers[members[0]]
        rows.append(
            {
                "head": members[0] if len(members) == 1 else f"{members[0]} … {members[-1]}",
                "layers": members,
                "straggler": members[0] in stragglers,
                "mask": entry.mask or "",
                "reason": entry.reason,
            }
        )
    return rows
