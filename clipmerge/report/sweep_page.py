"""A sweep as a table and as a page, from the record alone."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size

from clipmerge.files.templates import render

_DASH = "\N{EN DASH}"


def shortened(text: str, cells: int) -> str:
    """Leave out the middle of a name that is too long, because names of one family often differ at the end.

    Args:
        text: The name; white space in it is replaced by single blanks.
        cells: Terminal columns available.

    Example:
        >>> shortened("straggler-sparse-density-0.2-alpha-0.35", 21)
        'straggler-…alpha-0.35'
    """
    line = " ".join(text.split())
    if cell_len(line) <= cells:
        return line
    tail = (cells - 1) // 2
    return set_cell_size(line, cells - 1 - tail) + "…" + set_cell_size(line[::-1], tail)[::-1]


def ends_of(record: dict[str, Any]) -> dict[float, str]:
    """Names of the ends of the curve, by alpha.

    Args:
        record: Result of `clipmerge.api.sweep.sweep`.
    """
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


def heads_of(record: dict[str, Any]) -> list[tuple[str, bool]]:
    """Heading of each row, and whether it is a recipe.

    Args:
        record: Result of `clipmerge.api.sweep.sweep`.
    """
    heads, ends = [], ends_of(record)
    for row in record["curve"]:
        end = ends.get(row["alpha"])
        heads.append((f"alpha {row['alpha']:g}" + (f" ({end})" if end else ""), False))
    return heads + [(row["name"], True) for row in record["recipes"]]


def sweep_columns(record: dict[str, Any]) -> list[SweepColumn]:
    """Columns of the table: each source, the means, and the gain.

    Args:
        record: Result of `clipmerge.api.sweep.sweep`.
    """
    rows = [*record["curve"], *record["recipes"]]
    none = [""] * len(rows)

    def source(name: str) -> SweepColumn:
        return SweepColumn(name, [f"{100 * row['accuracy'][name]:.1f}" for row in rows], none, is_source=True)

    id_columns = [replace(source(name), is_source=len(record["id"]) > 1) for name in record["id"]]
    if len(record["id"]) > 1:
        id_columns.append(SweepColumn("mean ID", [f"{100 * row['id']:.1f}" for row in rows], none))
    spreads = [_interval(row["ood_interval"], signed=False) for row in rows]
    ood = SweepColumn("mean OOD", [f"{100 * row['ood']:.1f}" for row in rows], spreads)
    gains = [_DASH if row["gain"] is None else _signed(row["gain"]) for row in rows]
    gain = SweepColumn("gain at equal ID accuracy", gains, [_interval(row["gain_interval"]) for row in rows])
    return [*id_columns, *[source(name) for name in record["ood"]], ood, gain]


def _signed(value: float) -> str:
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _interval(ends: Sequence[float] | None, *, signed: bool = True) -> str:
    if not ends:
        return ""
    low, high = (_signed(end) if signed else f"{100 * end:.1f}" for end in ends)
    return f"[{low}, {high}]"


def sweep_page(record: dict[str, Any], picture: bytes) -> str:
    """Render the page, which loads nothing from the network.

    Args:
        record: Result of `clipmerge.api.sweep.sweep`.
        picture: Result of `clipmerge.report.sweep_picture.curve_png`.

    Returns:
        HTML with the picture inside.
    """
    columns = sweep_columns(record)
    return render(
        Path(__file__).parent / "templates" / "sweep.html.j2",
        {
            "record": record,
            "picture": base64.b64encode(picture).decode("ascii"),
            "columns": [column.title for column in columns],
            "rows": [
                {"head": head, "is_recipe": is_recipe, "cells": [column.text()[place] for column in columns]}
                for place, (head, is_recipe) in enumerate(heads_of(record))
            ],
            "headline": _headline(record),
            "level": f"{100 * record['bootstrap']['level']:.0f}%",
        },
        html=True,
    )


def _headline(record: dict[str, Any]) -> str:
    """The main result in one sentence: the best recipe against the curve, or the peak of the curve."""
    placed = [row for row in record["recipes"] if row["gain"] is not None]
    if not placed:
        top = max(record["curve"], key=lambda row: row["ood"])
        return (
            f"On the curve, mean OOD accuracy is highest at alpha {top['alpha']:g}: {100 * top['ood']:.1f}%, with "
            f"{100 * top['id']:.1f}% ID accuracy"
        )
    best = max(placed, key=lambda row: row["gain"])
    ends = best["gain_interval"]
    unsure = "" if ends and ends[0] > 0 else "; zero is not ruled out"
    return (
        f"{best['name']}: {_signed(best['gain'])} points of mean OOD accuracy against the alpha curve at equal ID "
        f"accuracy {_interval(ends)}".rstrip()
        + unsure
    )
