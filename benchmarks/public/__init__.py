"""Public pairs on public data sets, with the published figures beside ours.

`python -m benchmarks.public list` names the suites. Nobody has run them on the real models yet.
FusionBench's fine-tuned models have seen their training images, so nothing is learned from those:
only recipes that need no images take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import clipmerge
from clipmerge.errors import UsageError

RECIPES = ("lines", "monosoup")
_FILE = Path(__file__).with_name("suites.yaml")
#: Tasks whose repositories of fine-tuned models have another name.
_CALLED = {"cars": "stanford-cars"}


@dataclass(frozen=True)
class Suite:
    """A pair of checkpoints and its images.

    Attributes:
        name: Name of the suite.
        zeroshot: Zero-shot checkpoint.
        finetuned: Fine-tuned checkpoint.
        id: Images of the fine-tuning task, by name.
        ood: Images of shifts or of other tasks, by name.
        published: Accuracy in per cent by alpha and name of the images.
    """

    name: str
    zeroshot: str
    finetuned: str
    id: dict[str, str]
    ood: dict[str, str]
    published: dict[float, dict[str, float]]


def suites(file: Path = _FILE) -> dict[str, Suite]:
    """Every suite by name."""
    told = yaml.safe_load(file.read_text(encoding="utf-8"))
    found = []
    for zeroshot, accuracy in told["published"].items():
        size = zeroshot.rpartition("clip-vit-")[2]
        start = accuracy.pop("zero-shot")
        for task, end in accuracy.items():
            finetuned = f"tanganke/clip-vit-{size}_{_CALLED.get(task, task)}"
            every = {name: f"fusionbench-{name}" for name in start}
            own = {task: every.pop(task)}
            ends = {0.0: start, 1.0: end}
            found.append(Suite(f"{size}-{task}-others", zeroshot, finetuned, own, every, ends))
            if task in told["corrupted"]:
                shifts = {kind: f"fusionbench-{task}:{kind}" for kind in told["corrupted"][task]}
                ends = {alpha: {task: figures[task]} for alpha, figures in ends.items()}
                name = f"{size}-{task}-corrupted"
                found.append(Suite(name, zeroshot, finetuned, own, shifts, ends))
    return {suite.name: suite for suite in found}


def find(name: str) -> Suite:
    """The suite of this name."""
    every = suites()
    if name not in every:
        raise UsageError(f"no suite '{name}'; `python -m benchmarks.public list` names them")
    return every[name]


def run(suite: Suite, output: Path, recipes: Sequence[str] = RECIPES, **options: Any) -> str:
    """Sweep a suite and write its folder, with a page that shows the published figures too."""
    clipmerge.sweep(
        suite.zeroshot,
        suite.finetuned,
        id=suite.id,
        ood=suite.ood,
        recipes=list(recipes),
        output=output,
        **options,
    )
    text = page_of(suite, output)
    (output / "page.md").write_text(text, encoding="utf-8")
    return text


def page_of(suite: Suite, folder: Path) -> str:
    """A table of the points of a sweep, with published figures in brackets."""
    import json

    told = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    names = [*suite.id, *suite.ood]
    lines = [
        f"# {suite.name}",
        "",
        f"{suite.zeroshot}, {suite.finetuned}; published in brackets",
        "",
    ]
    lines += ["| model | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for point in [*told["curve"], *told["recipes"]]:
        alpha = point.get("alpha")
        theirs = suite.published.get(alpha, {}) if alpha is not None else {}
        cells = [_cell(point["accuracy"][name], theirs.get(name)) for name in names]
        head = point.get("name") or f"alpha {alpha:g}"
        lines.append("| " + " | ".join([head, *cells]) + " |")
    return "\n".join([*lines, ""])


def _cell(own: float, published: float | None) -> str:
    """Write an accuracy in per cent, and the published one in brackets.

    Example:
        >>> _cell(0.7504, 75.5), _cell(0.5, None)
        ('75.0 (75.5)', '50.0')
    """
    text = f"{100 * own:.1f}"
    return text if published is None else f"{text} ({published:.1f})"
