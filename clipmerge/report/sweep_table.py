"""The table of a sweep, from the record alone: for a terminal, a page, and as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from typing import Any

from rich.cells import cell_len, set_cell_size

from clipmerge.report.sweep_headline import interval, signed

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


def marks_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that are not points of the curve: recipes, then other checkpoints."""
    return [*record["recipes"], *record.get("points", [])]


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
    """Heading of each row, and whether it is a recipe or a checkpoint instead of a point of the curve.

    Args:
        record: Result of `clipmerge.api.sweep.sweep`.
    """
    heads, ends = [], ends_of(record)
    for row in record["curve"]:
        end = ends.get(row["alpha"])
        heads.append((f"alpha {row['alpha']:g}" + (f" ({end})" if end else ""), False))
    return heads + [(row["name"], True) for row in marks_of(record)]


def sweep_columns(record: dict[str, Any]) -> list[SweepColumn]:
    """Columns of the table: each source, the means, and the gain.

    Args:
        record: Result of `clipmerge.api.sweep.sweep`.
    """
    rows = [*record["curve"], *marks_of(record)]
    none = [""] * len(rows)

    def source(name: str) -> SweepColumn:
        return SweepColumn(name, [f"{100 * row['accuracy'][name]:.1f}" for row in rows], none, is_source=True)

    id_columns = [replace(source(name), is_source=len(record["id"]) > 1) for name in record["id"]]
    if len(record["id"]) > 1:
        id_columns.append(SweepColumn("mean ID", [f"{100 * row['id']:.1f}" for row in rows], none))
    spreads = [interval(row["ood_interval"], with_sign=False) for row in rows]
    ood = SweepColumn("mean OOD", [f"{100 * row['ood']:.1f}" for row in rows], spreads)
    curve = len(record["curve"])
    gains = ["" if place < curve else _gain(row["gain"]) for place, row in enumerate(rows)]
    gain = SweepColumn("gain at equal ID accuracy", gains, [interval(row["gain_interval"]) for row in rows])
    return [*id_columns, *[source(name) for name in record["ood"]], ood, gain]


def _gain(value: float | None) -> str:
    return _DASH if value is None else signed(value)


def sweep_csv(record: dict[str, Any]) -> str:
    """The points as CSV, one row each, with shares from 0 to 1; missing numbers are empty cells.

    Args:
        record: Result of `clipmerge.api.sweep.sweep`.

    Returns:
        The text, with a heading.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    means = [name for kind in ("id", "ood", "gain") for name in (kind, f"{kind}_low", f"{kind}_high")]
    writer.writerow(["kind", "name", "alpha", *means, "gain_note", *record["sources"]])
    kinds = {"curve": record["curve"], "recipe": record["recipes"], "checkpoint": record.get("points", [])}
    for kind, rows in kinds.items():
        for row in rows:
            numbers = [number for each in ("id", "ood", "gain") for number in (row[each], *_ends(row, each))]
            accuracies = [row["accuracy"][name] for name in record["sources"]]
            name = row.get("name", f"alpha {row['alpha']:g}" if kind == "curve" else "")
            writer.writerow([kind, _inert(name), row["alpha"], *numbers, row["gain_note"], *accuracies])
    return text.getvalue()


def _ends(row: dict[str, Any], kind: str) -> list[Any]:
    return list(row[f"{kind}_interval"] or (None, None))


def _inert(name: str) -> str:
    """Escape a name so that no spreadsheet interprets it as a formula."""
    return f"'{name}" if name[:1] in ("=", "+", "-", "@") else name
