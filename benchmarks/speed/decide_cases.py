"""Run the cases of docs/cost.md, and write its table from their results.

    python -m benchmarks.speed.decide_cases --folder CACHE [--only NAME ...]     run, and write the table
    python -m benchmarks.speed.decide_cases --table                              write the table alone

Each case is a run of `benchmarks.speed.decide`, whose figures go to ``benchmarks/results/decide/NAME.json``. All of
them take hours; each stands alone, and a case whose file is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "decide"
PAGE = ROOT / "docs" / "cost.md"
BEGIN, END = "<!-- table: python -m benchmarks.speed.decide_cases -->\n", "<!-- end of the table -->\n"

# The steps of recipes/auto.yaml, its looks (points of the path and candidates), and the images held back of 1024.
_STEPS, _LOOKS, _HELD = 200, 25, 205
_MANY = ["--classes", "1000", "--templates", "80"]
_LEARNING = ["--only", "first-step,auto,look", "--alone", "--steps", "3"]
#: Arguments of `benchmarks.speed.decide` by case.
CASES = {
    "path-64": ["--only", "path-barrier"],
    "path-1024": ["--only", "path-point", "--images", "1024"],
    "path-1000-classes": ["--only", "path-barrier", "--alone", "--nodes", "1", *_MANY],
    "auto-vision": [*_LEARNING, "--towers", "vision"],
    "auto-both": [*_LEARNING],
    "memory-vision-16": ["--only", "auto", "--alone", "--towers", "vision", "--batch", "16"],
    "memory-vision-32": ["--only", "auto", "--alone", "--towers", "vision", "--batch", "32"],
    "memory-both-16": ["--only", "auto", "--alone", "--batch", "16"],
    "memory-both-32": ["--only", "auto", "--alone", "--batch", "32"],
    # as on a machine whose memory holds no block's activations twice, so that they are computed again
    "memory-l14-4": ["--only", "first-step", "--alone", "--size", "l14", "--batch", "4", "--memory", "1"],
    "memory-l14-8": ["--only", "first-step", "--alone", "--size", "l14", "--batch", "8", "--memory", "1"],
}


# Cases of the same measure with fewer and more images per step. An L/14 with so few peaks where no image counts: at the
# end of a backward pass, when the gradients of all coefficients are there.
_PEAKS = {
    "ViT-B/32, vision": ("memory-vision-16", "memory-vision-32"),
    "ViT-B/32, both": ("memory-both-16", "memory-both-32"),
}


def rows() -> list[str]:
    """The table's lines: one per measure of every case that was run."""
    lines = [
        "| case | model, towers | images, prompts | measure | seconds | joint passes | peak private MB (weights) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in CASES:
        found = _result(name)
        lines += _rows_of(name, found) if found else []
    return lines


def _rows_of(name: str, found: dict[str, Any]) -> list[str]:
    settings = found["settings"]
    model = f"{settings['size'].upper().replace('B', 'B/').replace('L', 'L/')}, {settings['towers']}"
    prompts = settings["classes"] if settings["templates"] == 1 else f"{settings['classes']} x {settings['templates']}"
    lines = []
    for measure in settings["only"].split(","):
        figures = found[measure]
        what = measure if measure.startswith("path") else f"{measure}, {_step(measure, settings)}"
        passes = f"{figures['joint_passes']:.2f}" if "joint_passes" in figures else ""
        peak = f"{figures['private_mb']:.0f} ({found['weights_mb']:.0f})"
        cells = [f"`{name}`", model, f"{settings['images']}, {prompts}", what, f"{figures['seconds']:.1f}"]
        lines.append(f"| {' | '.join([*cells, passes, peak])} |")
    return lines


def _step(measure: str, settings: dict[str, Any]) -> str:
    images = f"{settings['batch']} + {settings['batch']} images"
    return f"{settings['steps']} steps of {images}" if measure == "auto" else images


def totals() -> list[str]:
    """A whole `auto` put together from its pieces, and the line through the peaks of two batch sizes."""
    lines = []
    for towers in ("vision", "both"):
        pieces = _result(f"auto-{towers}")
        lines += [_whole(towers, pieces)] if pieces else []
    for what, sizes in _PEAKS.items():
        small, large = map(_result, sizes)
        lines += [_line(what, small, large)] if small and large else []
    return lines


def _whole(towers: str, found: dict[str, Any]) -> str:
    """Steps and looks of `auto` over 1024 images; the looks are at 205 of them and as many copies."""
    settings = found["settings"]
    first, some = found["first-step"]["seconds"], found["auto"]["seconds"]
    step = (some - first) / (settings["steps"] - 1)
    looks = _LOOKS * _HELD / settings["batch"] * found["look"]["seconds"]
    minutes = (first + (_STEPS - 1) * step + looks) / 60
    return (
        f"- `auto` with the recipe's {_STEPS} steps over 1024 images, {towers}: a step takes {step:.1f} s, "
        f"and all looks {looks:.0f} s: together {minutes:.0f} minutes of one core."
    )


def _line(what: str, small: dict[str, Any], large: dict[str, Any]) -> str:
    sizes = [2 * found["settings"]["batch"] for found in (small, large)]
    # without what Python and its libraries took before the model was there
    peaks = [found[found["settings"]["only"]]["private_mb"] - found["idle_mb"] for found in (small, large)]
    each = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    fixed = peaks[0] - each * sizes[0]
    return (
        f"- Memory of `auto`, {what}: {each:.0f} MB for each image of a step, and {fixed:.0f} MB beside them, "
        f"{fixed / small['weights_mb']:.1f} x the weights: {(fixed + 128 * each) / 1e3:.1f} GB for 64 + 64 images."
    )


def _result(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def page_with(text: str, lines: list[str]) -> str:
    """The page with the table between its two marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "".join(f"{line}\n" for line in lines) + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are kept")
    parser.add_argument("--only", nargs="+", choices=sorted(CASES), default=sorted(CASES), metavar="NAME")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    for name in [] if options.table else options.only:
        target = RESULTS / f"{name}.json"
        if not target.exists():
            where = ["--folder", str(options.folder)] if options.folder else []
            command = [sys.executable, "-m", "benchmarks.speed.decide", *CASES[name], *where, "--json", str(target)]
            subprocess.run(command, check=True)
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), [*rows(), "", *totals()]), encoding="utf-8")


if __name__ == "__main__":
    main()
