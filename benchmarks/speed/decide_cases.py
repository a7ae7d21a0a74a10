"""Run the cases of docs/research/cost.md, and write its table from their results.

    python -m benchmarks.speed.decide_cases --folder CACHE [--only NAME ...]     run, and write the
    table python -m benchmarks.speed.decide_cases --table                              write the
    table alone

Each case is a run of `benchmarks.speed.decide`, whose figures go to
``benchmarks/results/decide/NAME.json``. All of them take hours; each runs on its own, and a case
whose file exists is not run again.
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
PAGE = ROOT / "docs" / "research" / "cost.md"
BEGIN, END = (
    "<!-- table: python -m benchmarks.speed.decide_cases -->\n",
    "<!-- end of the table -->\n",
)

# Steps with as many pictures as those of recipes/auto.yaml, its looks (points of the path and
# candidates), and the images held back of 1024.
_STEPS, _LOOKS, _HELD = 200, 25, 205
_MANY = ["--classes", "1000", "--templates", "80"]
_LEARNING = ["--only", "first-step,auto,look", "--alone", "--steps", "3"]
_PAIRS = ["--only", "path-barrier,first-order,auto", "--batch", "8", "--steps", "4"]
_PRODUCTS = ["--only", "auto", "--batch", "8", "--steps", "4", "--precision", "float32", "--floor"]
_FIRST = ["--only", "first-step", "--alone"]
_MEMORY = ["--only", "auto", "--alone", "--precision", "float32"]
_BFLOAT16 = [*_FIRST, "--precision", "bfloat16", "--images", "16"]
#: Arguments of `benchmarks.speed.decide` by case.
CASES = {
    "path-64": ["--only", "path-barrier"],
    "path-1024": ["--only", "path-point", "--images", "1024"],
    "path-1000-classes": ["--only", "path-barrier", "--alone", "--nodes", "1", *_MANY],
    "auto-vision": [*_LEARNING, "--towers", "vision"],
    "auto-both": [*_LEARNING],
    # the same images with a class, or with a caption, each of its own
    "pairs-classes": [*_PAIRS, "--classes", "64"],
    "pairs-captions": [*_PAIRS, "--captions"],
    "products-classes": [*_PRODUCTS, "--classes", "64"],
    "products-captions": [*_PRODUCTS, "--captions"],
    "memory-vision-8": [*_MEMORY, "--towers", "vision", "--batch", "8"],
    "memory-vision-16": [*_MEMORY, "--towers", "vision", "--batch", "16"],
    "memory-both-8": [*_MEMORY, "--batch", "8"],
    "memory-both-16": [*_MEMORY, "--batch", "16"],
    "memory-both-prompts": [*_MEMORY, "--batch", "8", "--classes", "200"],
    # few images: most processors without bfloat16 take ten times as long to multiply in it
    "memory-bf16-4": [*_BFLOAT16, "--batch", "4"],
    "memory-bf16-8": [*_BFLOAT16, "--batch", "8"],
    "memory-bf16-prompts": [*_BFLOAT16, "--batch", "4", "--classes", "200"],
    # the recipe's step, in pieces as on a machine of 16 GB
    "memory-l14-64": [
        *_FIRST,
        "--size",
        "l14",
        "--batch",
        "64",
        "--memory",
        "16",
        "--precision",
        "float32",
    ],
}


# Cases of the same measure with fewer and more images per step, and with more prompts.
_PEAKS = {
    "ViT-B/32, vision, float32": ("memory-vision-8", "memory-vision-16"),
    "ViT-B/32, both, float32": ("memory-both-8", "memory-both-16", "memory-both-prompts"),
    "ViT-B/32, both, bfloat16": ("memory-bf16-4", "memory-bf16-8", "memory-bf16-prompts"),
}


def rows() -> list[str]:
    """The table's lines: one per measure of every case that was run."""
    lines = [
        (
            "| case | model, towers | images, prompts | measure | seconds | joint passes | peak"
            " private MB (weights) |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for name in CASES:
        found = _result(name)
        lines += _rows_of(name, found) if found else []
    return lines


def _rows_of(name: str, found: dict[str, Any]) -> list[str]:
    settings = found["settings"]
    model = (
        f"{settings['size'].upper().replace('B', 'B/').replace('L', 'L/')}, {settings['towers']}"
    )
    prompts = settings["classes"]
    if settings.get("captions"):
        prompts = f"{settings['images']} captions"
    elif settings["templates"] > 1:
        prompts = f"{settings['classes']} x {settings['templates']}"
    lines = []
    for measure in settings["only"].split(","):
        figures = found[measure]
        what = measure if measure.startswith("path") else f"{measure}, {_step(measure, settings)}"
        passes = f"{figures['joint_passes']:.2f}" if "joint_passes" in figures else ""
        passes += f", products {figures['floor']:.2f}" if "floor" in figures else ""
        peak = f"{figures['private_mb']:.0f} ({found['weights_mb']:.0f})"
        cells = [
            f"`{name}`",
            model,
            f"{settings['images']}, {prompts}",
            what,
            f"{figures['seconds']:.1f}",
        ]
        lines.append(f"| {' | '.join([*cells, passes, peak])} |")
    return lines


def _step(measure: str, settings: dict[str, Any]) -> str:
    images = f"{settings['batch']} + {settings['batch']} images"
    precision = settings.get("precision", "auto")
    images += "" if precision == "auto" else f", {precision}"
    return f"{settings['steps']} steps of {images}" if measure == "auto" else images


def totals() -> list[str]:
    """Compute the cost of a whole `auto` from its pieces, and fit its memory to the peaks of
    different sizes."""
    lines = []
    for towers in ("vision", "both"):
        pieces = _result(f"auto-{towers}")
        lines += [_whole(towers, pieces)] if pieces else []
    for what, sizes in _PEAKS.items():
        found = [_result(name) for name in sizes]
        lines += [_line(what, *(each for each in found if each))] if all(found) else []
    return lines


def _whole(towers: str, found: dict[str, Any]) -> str:
    """Steps and looks of `auto` over 1024 images; a look evaluates 205 of them and as many
    copies."""
    settings = found["settings"]
    first, some = found["first-step"]["seconds"], found["auto"]["seconds"]
    step = (some - first) / (settings["steps"] - 1)
    looks = _LOOKS * _HELD / settings["batch"] * found["look"]["seconds"]
    minutes = (first + (_STEPS - 1) * step + looks) / 60
    return (
        f"- `auto` with {_STEPS} steps of 64 + 64 of 1024 images, {towers}: a step takes {step:.1f}"
        f" s, and all looks {looks:.0f} s: together {minutes:.0f} minutes of one core."
    )


def _line(
    what: str, small: dict[str, Any], large: dict[str, Any], prompts: dict[str, Any] | None = None
) -> str:
    """Split the peak into memory per image, per prompt and the rest; prompts count if they have a
    backward pass."""
    few, more = (2 * found["settings"]["batch"] for found in (small, large))
    image = (_peak(large) - _peak(small)) / (more - few)
    rest, said = _peak(small) - image * few, f"{image:.0f} MB for each image of a step"
    if prompts:
        count, extra = (
            small["settings"]["classes"],
            prompts["settings"]["classes"] - small["settings"]["classes"],
        )
        prompt = (_peak(prompts) - _peak(small)) / extra
        rest -= prompt * count
        said += f", {prompt:.1f} MB for each prompt of {small['tokens']} tokens"
    ratio = rest / small["weights_mb"]
    return (
        f"- Memory of `auto`, {what}: {said}, and {rest:.0f} MB beside them, {ratio:.1f} x the"
        " weights."
    )


def _peak(found: dict[str, Any]) -> float:
    """The highest private memory, without what Python and its libraries took before the model was
    loaded, in MB."""
    return float(found[found["settings"]["only"]]["private_mb"] - found["idle_mb"])


def _result(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def page_with(text: str, lines: list[str]) -> str:
    """The page with the table between its two marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "".join(f"{line}\n" for line in lines) + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="folder of the checkpoints")
    parser.add_argument(
        "--only", nargs="+", choices=sorted(CASES), default=sorted(CASES), metavar="NAME"
    )
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    for name in [] if options.table else options.only:
        target = RESULTS / f"{name}.json"
        if not target.exists():
            where = ["--folder", str(options.folder)] if options.folder else []
            command = [
                sys.executable,
                "-m",
                "benchmarks.speed.decide",
                *CASES[name],
                *where,
                "--json",
                str(target),
            ]
            subprocess.run(command, check=True)
    PAGE.write_text(
        page_with(PAGE.read_text(encoding="utf-8"), [*rows(), "", *totals()]), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
