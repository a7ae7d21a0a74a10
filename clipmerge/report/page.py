"""What a merge tells its user: a table on the terminal and one page, from the record alone.

The record is the dict that is also written as ``clipmerge.json``. Nothing is measured or read here,
and two equal merges give byte-identical pages: ``output``, ``seconds`` and the clock stay out of them.
"""

from __future__ import annotations

import io
import shlex
from collections import Counter
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import yaml
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from clipmerge.report import columns as charts
from clipmerge.report.columns import Column, columns_of

MAX_LINES = 25
MAX_WIDTH = 80
_RIGHT = 54  # columns left beside the layers' names
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


def summary_table(record: dict[str, Any]) -> RenderableType:
    """Sum a merge up for the terminal: at most 80 columns and about 25 lines, whatever the model's size.

    Straggler layers stand alone; neighbours with equal settings share a row. Where that is still too long,
    the other layers of a tower share one row, and in the end only the first stragglers are spelled out.

    Args:
        record: The merge's record, as in ``clipmerge.json``.

    Returns:
        Something for ``rich``'s ``Console.print``; reads the same without colour.
    """
    columns = _terminal_columns(record)
    stragglers = _stragglers(record)
    view: RenderableType = _summary(record, columns, _runs(record))
    for count in range(len(stragglers), -1, -1):
        if _height(view) <= MAX_LINES:
            break
        view = _summary(record, columns, _by_tower(record, stragglers[:count]), clip=True)
    return view


@dataclass(frozen=True)
class _Row:
    """One row of the terminal table, for one layer or several."""

    head: str
    note: str
    layers: tuple[str, ...]


def _runs(record: dict[str, Any]) -> list[_Row]:
    """Network order; neighbours with the same settings and reason share a row, stragglers never do."""
    stragglers = set(_stragglers(record))

    def group(layer: str) -> str:
        return layer if layer in stragglers else repr((_settings(record, layer), _reason(record, layer)))

    runs = [tuple(run) for _, run in groupby(record["layers"], key=group)]
    if len(runs) == 1 and len(runs[0]) > 1:
        return [_Row(f"all {len(runs[0])} layers", "", runs[0])]
    return [
        _Row(run[0], f"… {run[-1]}" if len(run) > 1 else "straggler" if run[0] in stragglers else "", run)
        for run in runs
    ]


def _by_tower(record: dict[str, Any], alone: list[str]) -> list[_Row]:
    rows = [_Row(layer, "straggler", (layer,)) for layer in alone]
    stragglers = set(_stragglers(record))
    rest = [layer for layer in record["layers"] if layer not in alone]
    for tower, group in groupby(rest, key=lambda layer: layer.partition(".")[0]):
        layers = tuple(group)
        hidden = sum(layer in stragglers for layer in layers)
        kind = "other layers" if alone else "layers"
        note = f"{hidden} straggler{'s' * (hidden > 1)} in them" if hidden else ""
        rows.append(_Row(f"{tower}: {len(layers)} {kind}" if len(layers) > 1 else layers[0], note, layers))
    return rows


def _summary(record: dict[str, Any], columns: list[Column], rows: list[_Row], *, clip: bool = False) -> Group:
    columns, lines = _number_lines(record, columns, rows)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("layer", no_wrap=True)
    table.add_column(lines[0], max_width=_RIGHT)
    for row, line in zip(rows, lines[1:], strict=True):
        reason = Text(_row_reason(record, row.layers), style="dim")
        if clip:
            reason.truncate(_RIGHT, overflow="ellipsis")
        head = Text(f"{_printable(row.head)}\n{_printable(row.note)}", "bold yellow" * ("straggler" in row.note))
        table.add_row(head, Text(line + "\n").append_text(reason))
    verdict = Text(_printable(_verdict(record)), style="bold")
    return Group(verdict, Text(), table, Text(), *_footnotes(record, columns, rows))


def _number_lines(record: dict[str, Any], columns: list[Column], rows: list[_Row]) -> tuple[list[Column], list[str]]:
    """Heading and rows as aligned text, with as many statistics as fit beside the layers' names."""
    masks = [{str(record["layers"][layer].get("mask") or "none") for layer in row.layers} for row in rows]
    shown = [column.title for column in columns]
    table = [shown, *[[_span(column, row.layers) for column in columns] for row in rows]]
    mask = ["mask", *["several" if len(kinds) > 1 else _printable(kinds.pop())[:14] for kinds in masks]]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    mask_width = max(map(len, mask))
    while len(widths) > 2 and sum(widths) + 2 * len(widths) + mask_width > _RIGHT:
        widths.pop()
    lines = []
    for cells, kind in zip(table, mask, strict=True):
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=False)]
        lines.append("  ".join([*padded[:2], kind.ljust(mask_width), *padded[2:]]).rstrip())
    return columns[: len(widths)], lines


def _span(column: Column, layers: tuple[str, ...]) -> str:
    """What several layers have in common: their value, their range, or the sum or median of a statistic."""
    if column.kind == "measured":
        return column.text(column.total(layers))
    values = [column.values.get(layer) for layer in layers]
    if column.key == "alpha_range":
        ranges = [value for value in values if value]
        return column.text([min(r[0] for r in ranges), max(r[1] for r in ranges)] if ranges else None)
    low, high = min(map(column.text, values)), max(map(column.text, values))
    return low if low == high else f"{low}-{high}"


def _row_reason(record: dict[str, Any], layers: tuple[str, ...]) -> str:
    reasons = list(dict.fromkeys(_printable(_reason(record, layer)) for layer in layers))
    text = reasons[0] if len(reasons) == 1 else f"{len(reasons)} different reasons, see report.html"
    return f"{len(layers)} layers: {text}" if len(layers) > 1 else text


def _footnotes(record: dict[str, Any], columns: list[Column], rows: list[_Row]) -> list[Text]:
    notes = []
    points = charts.path_points(record.get("path"))
    losses = [(alpha, charts.loss_at(points, alpha)) for alpha in (0.0, 0.5, 1.0)]
    if all(loss is not None for _, loss in losses):
        told = ", ".join(f"{loss:.3f} at {alpha:g}" for alpha, loss in losses)
        notes.append(Text(f"loss on the straight path, by alpha: {told} (nats)"))
    measured = [column for column in columns if column.kind == "measured"]
    if any(len(row.layers) > 1 for row in rows) and measured:
        sums = [column.title for column in measured if column.key in charts.ADDITIVE]
        medians = [column.title for column in measured if column.key not in charts.ADDITIVE]
        parts = [f"sum of {' and '.join(sums)}"] * bool(sums) + [f"median {' and '.join(medians)}"] * bool(medians)
        notes.append(Text(f"rows of several layers: {', '.join(parts)}", style="dim"))
    return notes


def _terminal_columns(record: dict[str, Any]) -> list[Column]:
    """Settings first, then the statistics that matter most, under names short enough for a terminal."""
    short = {
        "alpha": "alpha",
        "density": "density",
        "alpha_range": "alpha range",
        "barrier": "B_l",
        "loss_drop": "G_l",
        "change": "change",
    }
    columns = {column.key: column for column in columns_of(record)}
    statistic = [key for key in columns if key not in (*short, "z", "stability")]
    order = [
        *[key for key in ("alpha", "density", "alpha_range") if key in columns],
        *[key for key in charts.ADDITIVE if key in columns],
        *statistic,
    ]
    if "change" in columns:
        order.append("change")
    return [replace(columns[key], title=short.get(key, _printable(key))[:12]) for key in order]


def _height(view: RenderableType) -> int:
    return len(Console(width=MAX_WIDTH, file=io.StringIO()).render_lines(view, pad=False))


def html_page(record: dict[str, Any]) -> str:
    """Draw the whole report as one HTML page that asks the network for nothing.

    Args:
        record: The merge's record, as in ``clipmerge.json``; only ``layers``, ``recipe``, ``zeroshot`` and
            ``finetuned`` are needed.

    Returns:
        The page. Equal records give equal bytes, whatever their ``output`` and ``seconds``.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["minus"] = lambda text: str(text).replace("-", "\N{MINUS SIGN}")
    columns = columns_of(record)
    page = environment.get_template("report.html.j2")
    return page.render(
        version=record.get("clipmerge"),
        recipe_name=_recipe_name(record),
        verdict=_verdict(record),
        warnings=record.get("warnings") or [],
        data_free=_is_data_free(record),
        models=_models(record),
        calibration=record.get("calibration"),
        facts=_facts(record, columns),
        chart=charts.path_chart(record.get("path")),
        chart_size=(charts.WIDTH, charts.HEIGHT),
        columns=columns,
        strips=_strips(columns),
        layer_names=list(record["layers"]),
        groups=_groups(record, columns),
        usual_reason=_most_common([_reason(record, layer) for layer in record["layers"]]),
        has_masks=any(entry.get("mask") for entry in record["layers"].values()),
        stragglers=_stragglers(record),
        checks=_checks(record),
        tolerance=TOLERANCE,
        recipe_yaml=_recipe_yaml(record),
        command=_command(record),
        hashes=_hashes(record),
    )


def _stragglers(record: dict[str, Any]) -> list[str]:
    """In network order, whatever order the record has them in."""
    named = set(record.get("stragglers") or [])
    return [layer for layer in record["layers"] if layer in named]


def _settings(record: dict[str, Any], layer: str) -> tuple[Any, ...]:
    entry = record["layers"][layer]
    return entry.get("alpha"), entry.get("density", 1.0), entry.get("mask")


def _reason(record: dict[str, Any], layer: str) -> str:
    return str(record["layers"][layer].get("reason") or "")


def _recipe_name(record: dict[str, Any]) -> str:
    return str(record["recipe"].get("name") or "unnamed recipe")


def _is_data_free(record: dict[str, Any]) -> bool:
    return not record["recipe"].get("measure") and not record.get("measurements")


def _verdict(record: dict[str, Any]) -> str:
    count = len(record["layers"])
    return record.get("verdict") or f"{count} layers merged with the recipe {_recipe_name(record)}."


def _printable(text: str) -> str:
    """Keep control characters, which could rewrite a terminal, out of it."""
    return "".join(char if char.isprintable() else " " for char in text)


def _most_common(values: list[Any]) -> Any:
    return Counter(values).most_common(1)[0][0] if values else None


def _models(record: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Role and source of every checkpoint that went in."""
    finetuned = record["finetuned"]
    if isinstance(finetuned, dict):
        finetuned = [finetuned]
    roles = ["fine-tuned"] if len(finetuned) == 1 else [f"fine-tuned {i}" for i in range(1, len(finetuned) + 1)]
    return [("zero-shot", record["zeroshot"]), *zip(roles, finetuned, strict=True)]


def _hashes(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = [(role, model.get("files") or {}) for role, model in _models(record)]
    rows.append(("merged", record.get("files") or {}))
    return [(role, name, files[name] or "not hashed") for role, files in rows for name in sorted(files)]


def _facts(record: dict[str, Any], columns: list[Column]) -> list[tuple[str, str]]:
    """The handful of numbers a reader looks for first: what, then how much of it."""
    layers = record["layers"]
    facts = [("layers", f"{len(layers)}")]
    if not _is_data_free(record):
        facts.append(("straggler layers", f"{len(_stragglers(record)) or 'none'}"))
    low_high = _span(columns[0], tuple(layers)).replace("-", " to ")
    facts.append(("coefficient alpha", low_high))
    size = sum(entry.get("size") or 0 for entry in layers.values())
    if size:
        kept = sum((entry.get("size") or 0) * entry.get("density", 1.0) for entry in layers.values()) / size
        facts.append(("of the task vector kept", f"{100 * kept:.3g}%"))
    found = charts.barrier_of(charts.path_points(record.get("path")))
    if found:
        facts.append(("barrier at alpha 0.5", f"{found[0]:+.3f} nats".replace("-", "\N{MINUS SIGN}")))
    return facts


def _groups(record: dict[str, Any], columns: list[Column]) -> list[dict[str, Any]]:
    """The layers by tower, each with its cells, and what the tower adds up to."""
    stragglers = set(_stragglers(record))
    groups = []
    for tower, members in groupby(record["layers"], key=lambda layer: layer.partition(".")[0]):
        layers = list(members)
        rows = [
            {
                "layer": layer,
                "straggler": layer in stragglers,
                "cells": [_cell(column, layer) for column in columns],
                "mask": record["layers"][layer].get("mask") or "",
                "reason": _reason(record, layer),
            }
            for layer in layers
        ]
        sums = [(c.symbol, c.text(c.total(layers)), c.unit) for c in columns if c.key in charts.ADDITIVE]
        size = sum(record["layers"][layer].get("size") or 0 for layer in layers)
        title = _TOWERS.get(tower, tower)
        groups.append({"title": title, "rows": rows, "count": len(layers), "size": size, "sums": sums})
    return groups


def _cell(column: Column, layer: str) -> dict[str, Any]:
    value = column.values.get(layer)
    start, length = column.scale.bar(value)
    negative = charts.is_number(value) and value < 0
    return {"text": column.text(value), "start": start, "length": length, "negative": negative}


def _strips(columns: list[Column]) -> list[Column]:
    """What the overview draws: alpha and the two foremost statistics."""
    measured = [column for column in columns if column.kind == "measured"]
    first = [column for column in measured if column.key not in ("change", "z", "stability")] or measured
    return [columns[0], *first[:2]]


def _checks(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Each completeness check with its relative difference, absolute where zero was measured."""
    rows = []
    for name, check in (record.get("checks") or {}).items():
        total, measured = check.get("sum_of_layers"), check.get("measured")
        if not (charts.is_number(total) and charts.is_number(measured)):
            continue
        relative = abs(total - measured) / (abs(measured) or 1.0)
        title = _CHECKS.get(name, name.replace("_", " "))
        good = relative <= TOLERANCE
        rows.append({"title": title, "total": total, "measured": measured, "relative": relative, "good": good})
    return rows


def _recipe_yaml(record: dict[str, Any]) -> str:
    """The recipe as a file that can be merged with again; keys that say nothing are left out."""
    kept = _without_blanks(record["recipe"])
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, default_flow_style=False)


def _without_blanks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_blanks(item) for key, item in value.items() if item not in (None, [], (), {})}
    return [_without_blanks(item) for item in value] if isinstance(value, list | tuple) else value


def _command(record: dict[str, Any]) -> str:
    """The command that repeats this merge from the recipe saved as a file."""
    sources = []
    for _, model in _models(record):
        revision = model.get("revision")
        sources.append(f"{model['source']}@{revision}" if revision else str(model["source"]))
    words = ["clipmerge", "merge", *sources, "--recipe", "recipe.yaml"]
    calibration = record.get("calibration") or {}
    flags = {"source": "--data", "images": "--images", "batch_size": "--batch-size", "seed": "--seed"}
    for key, flag in flags.items():
        if calibration.get(key) is not None:
            words += [flag, str(calibration[key])]
    return shlex.join([*words, "--output", "merged"])
