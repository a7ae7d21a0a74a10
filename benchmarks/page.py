"""Write the tables into Markdown pages, and draw README's picture.

A table stands between the marks `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.pair_results import PAIRS_FOLDER, Results, every_result
from benchmarks.statistics import FINETUNED, ZEROSHOT, Accuracies, curve_of, point_of
from benchmarks.tables import AUTO, AXES, INTERPOLATED, TABLES, TAUGHT, by_target, having

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", ROOT / "docs" / "research.md")
PICTURE = ROOT / "docs" / "assets" / "results.png"
_MARK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write_pages(pages: Iterable[Path] = PAGES) -> list[Path]:
    """Write every marked table again, and return the pages that have changed."""
    every = every_result(PAIRS_FOLDER)
    changed = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        filled = _MARK.sub(lambda mark: f"{mark[1]}{table(mark[2], every)}\n{mark[3]}", text)
        if filled != text:
            page.write_text(filled, encoding="utf-8")
            changed.append(page)
    return changed


def table(name: str, every: Sequence[Results]) -> str:
    """One table in Markdown."""
    head, *rows = TABLES[name](every)
    if not rows:
        return "(no pair has these results yet)"
    lines = [_line(head), "|---|" + "---:|" * (len(head) - 1)]
    for row in rows:
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def draw(file: Path) -> None:
    """Draw the mean curve of real pairs, and the merges: shifts and other tasks by the target."""
    from matplotlib.figure import Figure

    pairs = having(every_result(PAIRS_FOLDER), [AUTO, TAUGHT])
    groups = by_target(each for each in pairs if each.tasks)
    figure = Figure(figsize=(9, 4), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2)
    points = {"plain interpolation, chosen alpha": INTERPOLATED, "auto": AUTO}
    points["auto, 100 labels of a shift"] = TAUGHT

    def mean(axis: str, of: Callable[[Results], Accuracies]) -> np.ndarray:
        each = [
            np.mean([getattr(of(pair), axis)[0] for pair in ours], axis=0)
            for ours in groups.values()
        ]
        return 100 * np.mean(each, axis=0)

    for axes, axis in zip(panels, ("ood", "tasks"), strict=True):
        target, other = mean("id", curve_of), mean(axis, curve_of)
        axes.plot(
            target, other, color="#888888", marker=".", label="plain interpolation, every alpha"
        )
        for end, name, side in ((0, ZEROSHOT, "left"), (-1, FINETUNED, "right")):
            place = (target[end], other[end])
            axes.annotate(name, place, xytext=(0, -13), textcoords="offset points", ha=side)
        for marker, (label, method) in zip("oDs", points.items(), strict=True):
            x, y = (mean(each, partial(point_of, method=method)) for each in ("id", axis))
            axes.scatter(x, y, marker=marker, s=50, zorder=3, label=label)
        axes.set(xlabel="accuracy on the target, %", ylabel=f"accuracy, {AXES[axis]}, %")
        axes.margins(x=0.18, y=0.12)
        axes.grid(color="#dddddd")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False
    )
    figure.savefig(file, metadata={"Software": None})
