"""The summary of a merge on a terminal: a table of at most 80 columns and about 25 lines."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from clipmerge.output.record import MergeRecord
from clipmerge.planning.effect_view import effect_view, unmeasured
from clipmerge.planning.other_tasks import EXPLANATION, HEADS, other_task_rows
from clipmerge.report.columns import Column, columns_of
from clipmerge.report.loss_path import loss_at, path_points

MAX_LINES = 25
MAX_WIDTH = 80
# stragglers that are always listed
_NAMED = 3
# columns beside the layers' names: at most, and as many as the settings need
_RIGHT, _LEAST_RIGHT = 54, 34


def summary(record: MergeRecord, width: int = MAX_WIDTH) -> RenderableType:
    """Summarise a merge that was learned in a few lines, without its layers; any other like `summary_table`."""
    if record.calibration is None or not any(layer.alpha_range for layer in record.layers.values()):
        return summary_table(record, width)
    unlabelled = record.calibration.unlabelled
    stragglers = record.headline.partition(" coefficients")[0].rpartition("; ")[0]
    learned = f"learned on {record.calibration.images:,} of your images"
    sentence = f"How far each weight goes from zero-shot to fine-tuned was {learned}"
    if record.choice and record.choice.alpha is not None:
        alpha = f"alpha {record.choice.alpha:g} for all weights"
        sentence = f"Nothing {learned} is proven better than {alpha}, which was taken"
        if record.choice.finetuned_rank is not None and not any(record.trace.values()):
            kept = f"{record.choice.finetuned_rank:.0%} of the effective rank of its features"
            sentence = f"Fine-tuning left the zero-shot model {kept}, so nothing was learned, and {alpha} was taken"
    lines = [f"{stragglers}."] * bool(stragglers) + [f"{sentence} (-v says more)."]
    lines += [unlabelled.sentence] if unlabelled else []
    return Group(*_effect_lines(record), *_other_task_lines(record), *(Text(_printable(line)) for line in lines))


def summary_table(record: MergeRecord, width: int = MAX_WIDTH) -> RenderableType:
    """Summarise a merge for the terminal: at most 80 columns and about 25 lines for a model of any size.

    If a row for each run of equal layers is too long, the other layers of a tower share one, below the stragglers.
    """
    columns = sorted(  # by importance: settings, additive statistics, other statistics, relative change
        (column for column in columns_of(record) if column.kind != "score"),
        key=lambda column: (column.kind != "setting", column.key == "change", not column.additive),
    )
    stragglers = record.found_stragglers
    view: RenderableType = _summary(record, columns, _runs(record), width)
    for count in range(len(stragglers), min(_NAMED, len(stragglers)) - 1, -1):
        if len(Console(width=MAX_WIDTH, file=io.StringIO()).render_lines(view, pad=False)) <= MAX_LINES:
            break
        view = _summary(record, columns, _by_tower(record, stragglers[:count]), width, clip=True)
    return view


@dataclass(frozen=True)
class _Row:
    """One row of the terminal table, for one layer or several."""

    head: str
    note: str
    layers: tuple[str, ...]


def _runs(record: MergeRecord) -> list[_Row]:
    """Rows in network order; neighbours with the same settings and reason share a row, stragglers never do."""
    stragglers = set(record.found_stragglers)

    def group(layer: str) -> str:
        entry = record.layers[layer]
        return layer if layer in stragglers else repr((entry.alpha, entry.density, entry.mask, entry.reason))

    runs = [tuple(run) for _, run in groupby(record.layers, key=group)]
    if len(runs) == 1 and len(runs[0]) > 1:
        return [_Row(f"all {len(runs[0])} layers", "", runs[0])]
    rows = []
    for run in runs:
        note = "straggler" if run[0] in stragglers else ""
        rows.append(_Row(run[0], f"… {run[-1]}" if len(run) > 1 else note, run))
    return rows


def _by_tower(record: MergeRecord, alone: list[str]) -> list[_Row]:
    rows = [_Row(layer, "straggler", (layer,)) for layer in alone]
    stragglers = set(record.found_stragglers)
    rest = [layer for layer in record.layers if layer not in alone]
    for tower, group in groupby(rest, key=lambda layer: layer.partition(".")[0]):
        layers = tuple(group)
        hidden = sum(layer in stragglers for layer in layers)
        kind = "other layers" if alone else "layers"
        head = f"{tower}: {len(layers)} {kind}" if len(layers) > 1 else layers[0]
        plural = "s" if hidden > 1 else ""
        rows.append(_Row(head, f"{hidden} straggler{plural} in them" if hidden else "", layers))
    return rows


def _summary(record: MergeRecord, columns: list[Column], rows: list[_Row], width: int, *, clip: bool = False) -> Group:
    heads = max(len(text) for row in rows for text in (row.head, row.note))
    right = max(_LEAST_RIGHT, min(_RIGHT, width - heads - 4))
    columns, lines = _number_lines(record, columns, rows, right)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("layer", no_wrap=True)
    table.add_column(lines[0], max_width=right)
    for row, line in zip(rows, lines[1:], strict=True):
        reasons = list(dict.fromkeys(_printable(record.layers[layer].reason) for layer in row.layers))
        why = reasons[0] if len(reasons) == 1 else f"{len(reasons)} different reasons, see report.html"
        count = len(row.layers)
        reason = Text(f"{count} layers: {why}" if count > 1 else why, style="dim")
        if clip:
            reason.truncate(right, overflow="ellipsis")
        style = "bold yellow" if "straggler" in row.note else ""
        head = Text(f"{_printable(row.head)}\n{_printable(row.note)}", style)
        table.add_row(head, Text(line + "\n").append_text(reason))
    unlabelled = record.calibration and record.calibration.unlabelled
    learned_from = [Text(_printable(unlabelled.sentence))] if unlabelled else []
    return Group(
        *_effect_lines(record),
        *_other_task_lines(record),
        Text(),
        Text(_printable(record.headline)),
        *learned_from,
        Text(),
        table,
        Text(),
        *_footnotes(record, columns, rows),
    )


def _effect_lines(record: MergeRecord) -> list[Text]:
    """The measured effect of the merge, which users look for first."""
    if record.bought is None:
        return [Text(unmeasured(with_images=record.calibration is not None, warnings=record.warnings), style="dim")]
    view = effect_view(record.bought)
    warnings = [Text(_printable(f"Warning: {warning}"), style="bold yellow") for warning in view.warnings]
    return [
        Text(_printable(view.verdict), style="bold"),
        *warnings,
        Text(_printable(view.reason)),
        Text(view.facts, style="dim"),
    ]


def _other_task_lines(record: MergeRecord) -> list[Table | Text]:
    """Tasks that the model was not fine-tuned for."""
    if not record.kept:
        return []
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for place, head in enumerate(("other tasks", *HEADS)):
        table.add_column(head, justify="left" if place < 2 else "right", no_wrap=place > 0)
    for row in other_task_rows(record.kept):
        table.add_row(*map(Text, (_printable(row.task), *row.cells)))
    return [Text(), table, Text(EXPLANATION, style="dim")]


def _number_lines(
    record: MergeRecord, columns: list[Column], rows: list[_Row], right: int
) -> tuple[list[Column], list[str]]:
    """Heading and rows as aligned text, with as many statistics as fit next to the layers' names."""
    masks = [{record.layers[layer].mask or "none" for layer in row.layers} for row in rows]
    shown = [column.short_title for column in columns]
    table = [shown, *[[column.span(row.layers) for column in columns] for row in rows]]
    mask = ["mask", *["several" if len(kinds) > 1 else _printable(kinds.pop())[:14] for kinds in masks]]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    mask_width = max(map(len, mask))
    while len(widths) > 2 and sum(widths) + 2 * len(widths) + mask_width > right:
        widths.pop()
    lines = []
    for cells, kind in zip(table, mask, strict=True):
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=False)]
        lines.append("  ".join([*padded[:2], kind.ljust(mask_width), *padded[2:]]).rstrip())
    return columns[: len(widths)], lines


def _footnotes(record: MergeRecord, columns: list[Column], rows: list[_Row]) -> list[Text]:
    notes = []
    points = path_points(record.path)
    losses = [(alpha, loss_at(points, alpha)) for alpha in (0.0, 0.5, 1.0)]
    if all(loss is not None for _, loss in losses):
        listed = ", ".join(f"{loss:.3f} at {alpha:g}" for alpha, loss in losses)
        notes.append(Text(f"loss on the straight path, by alpha: {listed} (nats)"))
    measured = [column for column in columns if column.kind != "setting"]
    if any(len(row.layers) > 1 for row in rows) and measured:
        sums = [column.short_title for column in measured if column.additive]
        medians = [column.short_title for column in measured if not column.additive]
        parts = [f"sum of {' and '.join(sums)}"] * bool(sums) + [f"median {' and '.join(medians)}"] * bool(medians)
        notes.append(Text(f"rows of several layers: {', '.join(parts)}", style="dim"))
    return notes


def _printable(text: str) -> str:
    """Replace control characters, which could manipulate a terminal, by blanks."""
    return "".join(char if char.isprintable() else " " for char in text)
