"""The page of a sweep, from the record alone."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from clipmerge.report.prose import page_of
from clipmerge.report.sweep_headline import answer, gain_notes, marks_of
from clipmerge.report.sweep_table import other_tasks_section, rows_of, sweep_columns


def sweep_page(record: dict[str, Any], picture: Markup) -> str:
    """Render the page, which loads nothing from the network."""
    single = [column for column in sweep_columns(record) if column.is_source and column.title in record["ood"]]
    columns = [*(column for column in sweep_columns(record) if column not in single), *single]  # a telephone shows few
    return page_of(
        "sweep.html.j2",
        {
            "record": record,
            "points": record.get("points", []),
            "picture": picture,
            "columns": [column.title for column in columns],
            "rows": [
                {"head": head, "is_mark": is_mark, "cells": [column.text()[place] for column in columns]}
                for place, (head, is_mark, _) in enumerate(rows_of(record))
            ],
            "answer": answer(record),
            "gain_notes": gain_notes(record),
            "names": [row["name"] for row in marks_of(record)],
            **other_tasks_section(record),
            "level": f"{100 * record['bootstrap']['level']:.0f}%",
        },
    )
