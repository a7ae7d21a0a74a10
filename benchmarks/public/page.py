"""The Markdown page of a suite that was run, with published figures next to its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipmerge.report.prose import render
from clipmerge.report.sweep_table import rows_of

_DASH = "\N{EN DASH}"


def page_of(record: Mapping[str, Any]) -> str:
    """Make the page in Markdown from the record of `run_suite`; the pictures lie beside it."""
    return render(
        Path(__file__).with_name("page.md.j2"),
        {
            "record": record,
            "tables": [_table(pair) for pair in record["pairs"]],
            "picture_name": picture_name,
        },
        html=False,
        cell=lambda text: " ".join(str(text).replace("|", "\\|").split()),  # of a table
    )


def picture_name(suite: str, pair: str) -> str:
    """File name of a pair's picture; the pair's name may be empty."""
    return f"{suite}{'-' + pair if pair else ''}.png"


def figure(own: float | None, published: float | None) -> str:
    """Write an accuracy and the published one in brackets, both in per cent.

    Example:
        >>> figure(75.04, 75.5), figure(None, 81.0), figure(50.0, None)
        ('75.0 (75.5)', '– (81.0)', '50.0')
    """
    text = _DASH if own is None else f"{own:.1f}"
    return text if published is None else f"{text} ({published:.1f})"


def _table(pair: Mapping[str, Any]) -> dict[str, Any]:
    """The columns and rows of a pair's table."""
    sweep = pair["sweep"]
    names, mean = [*sweep["id"], *sweep["ood"]], ["mean OOD"] if len(sweep["ood"]) > 1 else []
    published = {model["alpha"]: model for model in pair["published"] if model["alpha"] is not None}
    rows = []
    for head, is_mark, point in rows_of(sweep):
        theirs = {} if is_mark else published.get(point["alpha"], {}).get("accuracy", {})
        cells = [figure(100 * point["accuracy"][name], theirs.get(name)) for name in names]
        gain = _DASH if point["gain"] is None else f"{100 * point['gain']:+.1f}"
        rows.append(
            {"head": head, "cells": [*cells, *[f"{100 * point['ood']:.1f}"] * len(mean), gain]}
        )
    for model in pair["published"]:
        if model["alpha"] is None:
            cells = [
                figure(None, model["accuracy"][name]) if name in model["accuracy"] else ""
                for name in names
            ]
            rows.append({"head": model["point"], "cells": [*cells, *[""] * len(mean), ""]})
    return {"columns": [*names, *mean, "gain"], "rows": rows}
