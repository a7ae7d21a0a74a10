"""The picture of the loss path, the bars of the page, numbers as the report prints them, and the page of `bench`."""

from typing import Any

from clipmerge.planning.measurements import LossPath
from clipmerge.report.bench_page import bench_page
from clipmerge.report.merge_pictures import path_figure, path_picture
from clipmerge.report.numbers import decimals_for, format_number


def test_loss_chart_keeps_order_and_scale():
    path = LossPath(alphas=(1.0, 0.0, 0.5), losses=(1.0, 3.0, 1.0))
    figure = path_figure(path)
    assert figure is not None
    straight, curve, gap = figure.axes[0].get_lines()
    assert curve.get_xydata().tolist() == [[0, 3], [0.5, 1], [1, 1]]
    assert straight.get_xydata().tolist() == [[0, 3], [1, 1]]
    assert gap.get_xydata().tolist() == [[0.5, 2], [0.5, 1]]
    assert path.barrier == (-1.0, 2.0)


def test_without_the_middle_no_barrier_is_drawn():
    path = LossPath(alphas=(0.0, 0.3, 1.0), losses=(3.0, 1.0, 1.0))
    figure = path_figure(path)
    assert figure is not None
    assert len(figure.axes[0].get_lines()) == 2
    picture = path_picture(path)
    assert picture is not None
    assert "alpha 0.3: 1.000 nats" in picture.svg
    assert "barrier" not in picture.caption


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
    assert table["model"] == ["near", "far", "gain"]  # the mean of one source is that source
    assert table["alpha 0 (zero-shot)"] == ["75.0 (75.5)", "50.0", "+0.0"]
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


def test_zeros_and_large_numbers_are_printed_like_their_column() -> None:
    assert format_number(0.0, decimals_for([0.0, None])) == "0.00"
    assert (format_number(1234567.0, None), format_number(0.0, None, signed=True)) == ("1.23e+06", "0")
