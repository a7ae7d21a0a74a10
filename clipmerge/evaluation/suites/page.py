"""The Markdown page of a suite that was run, with published figures next to its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipmerge.files.templates import render
from clipmerge.report.sweep_table import heads_of, marks_of

_DASH = "\N{EN DASH}"


def bench_page(record: Mapping[str, Any]) -> str:
    """Make the page.

    Args:
        record: The record from `clipmerge.api.bench.bench`.

    Returns:
        Markdown; the pictures lie beside it.
    """
    return render(
        Path(__file__).parent / "templates" / "page.md.j2",
        {"record": record, "pairs": [_pair(record, pair) for pair in record["pairs"]]},
        html=False,
        filters={"cell": _cell},
    )


def picture_name(suite: str, pair: str) -> str:
    """Name of a pair's picture.

    Args:
        suite: Name of the suite.
        pair: Name of the pair; may be empty.
    """
    return f"{suite}{'-' + pair if pair else ''}.png"


def figure(own: float | None, published: float | None) -> str:
    """Write an accuracy and the published one in brackets, both in per cent.

    Args:
        own: Accuracy in per cent; ``None`` for a model that was not evaluated.
        published: The published one; ``None`` if there is none.

    Example:
        >>> figure(75.04, 75.5), figure(None, 81.0), figure(50.0, None)
        ('75.0 (75.5)', '– (81.0)', '50.0')
    """
    text = _DASH if own is None else f"{own:.1f}"
    return text if published is None else f"{text} ({published:.1f})"


def _pair(record: Mapping[str, Any], pair: Mapping[str, Any]) -> dict[str, Any]:
    sweep = pair["sweep"]
    names = [*sweep["id"], *sweep["ood"]]
    published = {each["alpha"]: each for each in pair["published"] if each["alpha"] is not None}
    rows = []
    for (head, _), point in zip(heads_of(sweep), [*sweep["curve"], *marks_of(sweep)], strict=True):
        told = published.get(point["alpha"], {}).get("accuracy", {}) if "name" not in point else {}
        cells = [figure(100 * point["accuracy"][name], told.get(name)) for name in names]
        gain = _DASH if point["gain"] is None else f"{100 * point['gain']:+.1f}"
        rows.append({"head": head, "cells": [*cells, f"{100 * point['ood']:.1f}", gain]})
    for each in pair["published"]:
        if each["alpha"] is None:
            cells = [figure(None, each["accuracy"][name]) if name in each["accuracy"] else "" for name in names]
            rows.append({"head": each["point"], "cells": [*cells, "", ""]})
    return {
        "name": pair["name"],
        "columns": [*names, "mean OOD", "gain"],
        "rows": rows,
        "picture": picture_name(record["suite"], pair["name"]),
        "checks": pair["checks"],
        "checkpoints": [pair["zeroshot"], pair["finetuned"]],
        "data": [{"name": name, **pair["data"][name]} for name in names],
        "origins": list(dict.fromkeys(each["source"] for each in pair["published"])),
        "seconds": sum(sweep["seconds"].values()),
        "warnings": sweep["warnings"],
    }


def _cell(text: object) -> str:
    """Escape a text for a Markdown table."""
    return " ".join(str(text).replace("|", "\\|").split())
