"""The page: own figures with published ones beside them, in a table that Markdown can read."""

from __future__ import annotations

from typing import Any

from clipmerge.report.bench_page import bench_page


def point(alpha: float | None, near: float, far: float, **more: Any) -> dict[str, Any]:
    accuracy = {"near": near, "far": far}
    return {"alpha": alpha, "accuracy": accuracy, "id": near, "ood": far, "gain": 0.0, **more}


def record(**changes: Any) -> dict[str, Any]:
    sweep = {
        "id": ["near"],
        "ood": ["far"],
        "curve": [point(0.0, 0.75, 0.5), point(1.0, 0.8, 0.4)],
        "recipes": [point(None, 0.8, 0.6, name="auto")],
        "seconds": {"plan": 1.0, "evaluate": 2.0},
        "warnings": ["a | b"],
        "headline": "auto gains: +1.2 points [+0.5, +1.9].",
    }
    published = [
        {"point": "zero-shot", "alpha": 0.0, "source": "paper", "accuracy": {"near": 75.5}},
        {"point": "soup", "alpha": None, "source": "paper", "accuracy": {"far": 61.0}},
    ]
    check = {"source": "near", "found": 75.0, "published": 75.5, "allowed": 1.0, "passed": True}
    checkpoint = {"source": "acme/clip", "revision": "abc", "files": {"model.pt": "12"}, "verified": False}
    pair = {
        "name": "",
        "zeroshot": checkpoint,
        "finetuned": checkpoint | {"verified": None},
        "data": {name: {"source": f"hf://{name}", "revision": "r", "images": 64} for name in ("near", "far")},
        "checks": [check],
        "published": published,
        "sweep": sweep,
    }
    facts = {"clipmerge": "1", "torch": "2", "device": "CPU", "suite": "s", "title": "t", "model": "m", "limit": None}
    return {**facts, "seed": 0, "command": "clipmerge bench s", "notes": ["a note"], "pairs": [pair], **changes}


def rows(page: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line[:1] == "|"]
    return {row[0].strip("| "): [cell.strip("| ") for cell in row[1:]] for row in cells}


def test_published_figures_stand_beside_ours() -> None:
    page = bench_page(record())
    table = rows(page)
    assert table["model"] == ["near", "far", "mean OOD", "gain"]
    assert table["alpha 0 (zero-shot)"] == ["75.0 (75.5)", "50.0", "50.0", "+0.0"]
    assert table["auto"][:2] == ["80.0", "60.0"]
    assert table["soup"][1] == "\N{EN DASH} (61.0)"
    assert "**as published**" in page
    assert "12 (none is published)" in page
    assert "Not a reproduction" not in page
    assert "a \\| b" in page
    assert page.index("**auto gains: +1.2 points [+0.5, +1.9].**") < page.index("| model |")


def test_a_sample_is_called_one() -> None:
    page = bench_page(record(limit=64))
    assert (
        "**Not a reproduction:** 64 images per source were sampled (seed 0), so one image counts for 1.6 points" in page
    )
