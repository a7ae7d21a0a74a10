"""The table of a sweep, from the record alone: for a terminal, as CSV, and on the sweep's page."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace

from markupsafe import Markup
from rich.cells import cell_len, set_cell_size

from clipmerge.planning.other_tasks import Score, measures_of
from clipmerge.planning.table import source_columns
from clipmerge.report.prose import render_page
from clipmerge.report.text import (
    gain_note,
    gain_notes,
    interval_text,
    off_curve_rows,
    signed_points,
    sweep_answer,
)
from clipmerge.types import Json

_DASH = "\N{EN DASH}"
_MEANS = ("id", "ood", "gain")


def shorten_middle(text: str, cells: int) -> str:
    """Leave out the middle of a name that is too long, because names of one family often differ at
    the end.

    Example:
        >>> shorten_middle("straggler-sparse-density-0.2-alpha-0.35", 21)
        'straggler-…alpha-0.35'
    """
    line = " ".join(text.split())
    if cell_len(line) <= cells:
        return line
    tail = (cells - 1) // 2
    return set_cell_size(line, cells - 1 - tail) + "…" + set_cell_size(line[::-1], tail)[::-1]


def curve_ends(record: Json) -> dict[float, str]:
    """Names of the ends of the curve, by alpha."""
    count = len(record.get("finetuned", ()))
    return {0.0: "zero-shot", 1.0: f"average of {count}" if count > 1 else "fine-tuned"}


@dataclass(frozen=True)
class SweepColumn:
    """One column of the table: its heading, one cell per row, and the interval of each cell."""

    title: str
    cells: list[str]
    spread: list[str]
    is_source: bool = False

    def text(self, *, spread: bool = True) -> list[str]:
        """The cells, with their intervals or without."""
        pairs = zip(self.cells, self.spread, strict=True)
        return [f"{cell} {interval}".rstrip() if spread else cell for cell, interval in pairs]


def rows_of(record: Json) -> list[tuple[str, bool, Json]]:
    """Heading of each row, whether it is a recipe or a checkpoint instead of a point of the curve,
    and its numbers.
    """
    rows = []
    ends = curve_ends(record)
    for row in record["curve"]:
        end = ends.get(row["alpha"])
        rows.append((f"alpha {row['alpha']:g}" + (f" ({end})" if end else ""), False, row))
    return rows + [(row["name"], True, row) for row in off_curve_rows(record)]


def sweep_columns(record: Json) -> list[SweepColumn]:
    """Columns of the table: each source, the means, and the gain."""
    rows = [row for _, _, row in rows_of(record)]
    none = [""] * len(rows)

    def source(name: str) -> SweepColumn:
        return SweepColumn(
            name, [f"{100 * row['accuracy'][name]:.1f}" for row in rows], none, is_source=True
        )

    id_columns = [replace(source(name), is_source=len(record["id"]) > 1) for name in record["id"]]
    if len(record["id"]) > 1:
        id_columns.append(SweepColumn("mean ID", [f"{100 * row['id']:.1f}" for row in rows], none))
    spreads = [interval_text(row["ood_interval"], with_sign=False) for row in rows]
    has_mean = len(record["ood"]) > 1
    ood = SweepColumn(
        "mean OOD" if has_mean else record["ood"][0],
        [f"{100 * row['ood']:.1f}" for row in rows],
        spreads,
    )
    curve = len(record["curve"])
    gains = [
        "" if index < curve else _DASH if row["gain"] is None else signed_points(row["gain"])
        for index, row in enumerate(rows)
    ]
    gain = SweepColumn(
        "gain at equal ID accuracy", gains, [interval_text(row["gain_interval"]) for row in rows]
    )
    return [*id_columns, *[source(name) for name in record["ood"] if has_mean], ood, gain]


def other_tasks_section(record: Json) -> Json:
    """Scores on tasks that the model was not fine-tuned for: one column per number, one row per
    point.
    """
    rows = []
    cells = dict[str, str]()
    for head, is_mark, row in rows_of(record):
        cells = {
            f"{task['name']}: {measure}": f"{100 * value:.1f}"
            for task in record.get("other_tasks", [])
            for measure, value in measures_of(
                Score.model_validate(row["other_tasks"][task["name"]])
            ).items()
        }
        rows.append({"head": head, "is_mark": is_mark, "cells": list(cells.values())})
    return {"other_tasks_columns": list(cells), "other_tasks_rows": rows}


def sweep_page(record: Json, picture: Markup) -> str:
    """Render the page, which loads nothing from the network."""
    single = [
        column
        for column in sweep_columns(record)
        if column.is_source and column.title in record["ood"]
    ]
    # a telephone shows few
    columns = [
        *(column for column in sweep_columns(record) if column not in single),
        *single,
    ]
    return render_page(
        "sweep.html.j2",
        {
            "record": record,
            "points": record.get("points", []),
            "picture": picture,
            "columns": [column.title for column in columns],
            "rows": [
                {
                    "head": head,
                    "is_mark": is_mark,
                    "cells": [column.text()[index] for column in columns],
                }
                for index, (head, is_mark, _) in enumerate(rows_of(record))
            ],
            "answer": sweep_answer(record),
            "gain_notes": gain_notes(record),
            "names": [row["name"] for row in off_curve_rows(record)],
            **other_tasks_section(record),
            "level": f"{100 * record['bootstrap']['level']:.0f}%",
        },
    )


def sweep_csv(record: Json) -> str:
    """The points as CSV, one row each, with shares from 0 to 1; missing numbers are empty cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    means = [name for kind in _MEANS for name in (kind, f"{kind}_low", f"{kind}_high")]
    columns = ["kind", "name", "alpha", *means, "gain_note"]
    writer.writerow([*columns, *source_columns(record, columns)])
    kinds = {
        "curve": record["curve"],
        "recipe": record["recipes"],
        "checkpoint": record.get("points", []),
    }
    for kind, rows in kinds.items():
        for row in rows:
            numbers = [
                number
                for mean in _MEANS
                for number in (row[mean], *(row[f"{mean}_interval"] or (None, None)))
            ]
            accuracies = [row["accuracy"][name] for name in record["sources"]]
            name = row.get("name", f"alpha {row['alpha']:g}" if kind == "curve" else "")
            # or a spreadsheet takes it for a formula
            inert = f"'{name}" if name[:1] in ("=", "+", "-", "@") else name
            writer.writerow([kind, inert, row["alpha"], *numbers, gain_note(row), *accuracies])
    return text.getvalue()
