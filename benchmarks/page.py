"""Write the tables into Markdown pages, and draw README's picture.

A table stands between the marks `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.pair_results import PAIRS_FOLDER, Results, every_result
from benchmarks.statistics import FINETUNED, ZEROSHOT
from benchmarks.tables import AUTO, TABLES, accuracy, by_target, having

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
    """Draw ID and OOD accuracy of zero-shot, fine-tuned and merged models, one line per target."""
    from matplotlib.figure import Figure

    groups = by_target(having(every_result(PAIRS_FOLDER), [AUTO]))
    figure = Figure(figsize=(8.6, 1.3 + 0.4 * len(groups)), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"id": "on the target", "ood": "under shifts"}
    markers = {ZEROSHOT: "o", FINETUNED: "s", AUTO: "D"}
    for axes, (axis, title) in zip(panels, titles.items(), strict=True):
        for method, marker in markers.items():
            means = []
            for pairs in groups.values():
                values = [accuracy(each, method, axis)[0] for each in pairs]
                means.append(100 * np.mean(values))
            axes.scatter(means, list(groups), marker=marker, label=method, zorder=3)
        axes.set_title(f"accuracy {title}, %", fontsize=10)
        axes.grid(color="#dddddd")
    panels[0].invert_yaxis()
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file, metadata={"Software": None})
