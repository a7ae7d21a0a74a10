"""Fill the GPU table of docs/research/cost.md, in at most 40 minutes:
``python -m benchmarks.gpu [--folder CACHE]``.

Checkpoints have random weights and the shapes of a ViT-B/32, an L/14 at 336 pixels and an H/14;
images are JPEGs of noise. The figures go to ``benchmarks/results/gpu/DEVICE.json`` as soon as they
are measured; a case that does not begin within the minutes is "not run". ``--table`` writes the
table from the files alone.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPModel

import clipmerge
from clipmerge.plugins import plugin_names
from clipmerge.progress import Progress
from tests.support.real_sizes import config_of, processor_of
from tests.support.tiny_clip import tiny_config, tiny_processor

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
PAGE = ROOT / "docs" / "research" / "cost.md"
BEGIN, FINISH = "<!-- table: python -m benchmarks.gpu -->\n", "<!-- end of the gpu table -->\n"
#: Takes one measurement, and returns its figures by name.
Case = Callable[[], dict[str, Any]]
_MINUTES = 40
_STEPS, _IMAGES, _JPEGS = 20, 1024, 5000
# bigG/14 takes too long.
_SIZES = ("B/32", "L/14@336", "H/14")
#: Measures that need several checkpoints, or learn: `auto` is measured by itself.
_OTHERS = {"soup-accuracy", "learned-coefficients", "learned-sparse", "projection-radii"}


def save_pair(folder: Path, size: str) -> tuple[Path, Path]:
    """Save both ends of a size in float16, as checkpoints are published, unless they exist."""
    name = re.sub(r"\W+", "-", size.lower())
    paths = (folder / f"{name}-zeroshot", folder / f"{name}-finetuned")
    if not (paths[1] / "config.json").exists():
        config = tiny_config(2, 16) if size == "tiny" else config_of(size)
        processor = tiny_processor() if size == "tiny" else processor_of(size)
        torch.manual_seed(0)
        model = CLIPModel(config).half()
        for path in paths:
            model.save_pretrained(path)
            processor.save_pretrained(path)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(
                        0.1 * parameter.float().abs().mean() * torch.randn(parameter.shape)
                    )
    return paths


def save_jpegs(folder: Path, count: int, classes: int = 10) -> Path:
    """Save JPEGs of noise, each class around its own colour, unless they exist."""
    rng = np.random.default_rng(count)
    for number in range(count if not folder.exists() else 0):
        label = number % classes
        place = folder / (3 * chr(ord("a") + label))
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 120, (256, 320, 3)) + 13 * label
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.jpg", quality=90)
    return folder


def measured(work: Callable[[], Any], device: str) -> dict[str, Any]:
    """Seconds, the highest memory of the device in GB, and its idle share: what no kernel filled of
    the time."""
    cuda = device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    with profile if cuda else nullcontext():
        begin = time.perf_counter()
        work()
        seconds = time.perf_counter() - begin
    figures: dict[str, Any] = {"seconds": seconds}
    if cuda:
        busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
        figures |= {
            "idle": max(0.0, 1 - busy / seconds),
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        }
    return figures


def coefficients(ends: tuple[Path, Path], options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The coefficients that `auto` learns, entry by entry."""
    return clipmerge.plan(*ends, "auto", **options).coefficients


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether all bits are: means of layers hide a difference."""
    return bool(one) and all(torch.equal(value, other[name]) for name, value in one.items())


class Notes(Progress):
    """Keeps what is said: the forecast of the cost is among it."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """Keep a line."""
        self.said.append(text)


def cases(
    folder: Path, device: str, sizes: list[str], images: int, jpegs: int, steps: int
) -> dict[str, Callable[[], dict[str, Any]]]:
    """The cases by name, in the order in which they run."""
    data = save_jpegs(folder / f"images-{images}", images)

    def plan(size: str, recipe: Any, **options: Any) -> dict[str, Any]:
        notes = Notes()
        ends = save_pair(folder, size)
        work = partial(
            clipmerge.plan,
            *ends,
            recipe,
            data=data,
            device=device,
            images=images,
            progress=notes,
            **options,
        )
        return measured(work, device) | {"said": notes.said}

    def repeats() -> dict[str, Any]:
        ends = save_pair(folder, sizes[0])
        options: dict[str, Any] = {"data": data, "device": device, "set": {"measure.steps": 2}}
        return {"seconds": 0.0, "equal": are_equal(*(coefficients(ends, options) for _ in "ab"))}

    def sweep() -> dict[str, Any]:
        many = save_jpegs(folder / f"images-{jpegs}", jpegs)
        ends = save_pair(folder, sizes[0])
        return measured(
            partial(clipmerge.sweep, *ends, id={"a": many}, ood={"b": data}, device=device), device
        )

    found: dict[str, Case] = {}
    for size in sizes:
        found[f"`auto`, {size}, {steps} steps"] = partial(
            plan, size, "auto", set={"measure.steps": steps}
        )
    for name in sorted(set(plugin_names("measures")) - _OTHERS):
        recipe = {"name": name, "measure": {"name": name}, "method": {"name": "wise-ft"}}
        found[f"`{name}`, {sizes[0]}"] = partial(plan, sizes[0], recipe)
    found["`auto` twice: equal coefficients"] = repeats
    found[f"`sweep` of {jpegs:,} JPEGs, eleven alphas, {sizes[0]}"] = sweep
    return found


def run(every: dict[str, Case], target: Path, machine: dict[str, Any], minutes: float) -> None:
    """Run the cases one after the other, and write the file after each."""
    begin = time.perf_counter()
    found: dict[str, dict[str, Any]] = {}
    for name, case in every.items():
        if time.perf_counter() - begin > 60 * minutes:
            found[name] = {"not_run": f"{minutes:g} minutes were over"}
        else:
            try:
                found[name] = case()
            except (
                clipmerge.ClipmergeError,
                torch.cuda.OutOfMemoryError,
            ) as error:  # the next size may fit
                found[name] = {"not_run": str(error).splitlines()[0]}
        print(f"{name}: {found[name]}", flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            json.dumps({**machine, "cases": found}, indent=1) + "\n", encoding="utf-8"
        )


def table(files: list[Path]) -> str:
    """The table of the results; without any it says so."""
    lines = []
    for file in files:
        record = json.loads(file.read_text(encoding="utf-8"))
        lines += [
            f"{record['device']}, torch {record['torch']}, tests marked `gpu`: {record['tests']}.",
            "",
        ]
        lines += ["| case | seconds | idle | peak GB | |", "|---|---:|---:|---:|---|"]
        for name, case in record["cases"].items():
            idle = f"{100 * case['idle']:.0f}%" if "idle" in case else ""
            peak = f"{case['peak_gb']:.1f}" if "peak_gb" in case else ""
            seconds = f"{case['seconds']:.1f}" if case.get("seconds") else ""
            more = case.get("not_run", "") or (
                "" if "equal" not in case else "yes" if case["equal"] else "no"
            )
            lines.append(f"| {name} | {seconds} | {idle} | {peak} | {more} |")
        lines.append("")
    return "\n".join(lines) if lines else "Not measured: no GPU has been at hand.\n"


def write_table() -> None:
    """Write the table into docs/research/cost.md."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(
        before + BEGIN + table(sorted(RESULTS.glob("*.json"))) + FINISH + rest.split(FINISH)[1],
        "utf-8",
    )


def main() -> int:
    """Measure, unless there is no device, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, help="folder of checkpoints and images; a temporary one by default"
    )
    parser.add_argument(
        "--minutes", type=float, default=_MINUTES, help="no case begins after these"
    )
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if not options.table:
        if not torch.cuda.is_available():
            print("no CUDA device: nothing was measured", file=sys.stderr)
            return 1
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "tests"]
        tests = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout
        name = torch.cuda.get_device_name()
        machine = {
            "device": name,
            "torch": torch.__version__,
            "tests": tests.strip().splitlines()[-1].strip("= "),
        }
        target = RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
        with tempfile.TemporaryDirectory() as temporary:
            every = cases(
                options.folder or Path(temporary), "cuda", list(_SIZES), _IMAGES, _JPEGS, _STEPS
            )
            run(every, target, machine, options.minutes)
    write_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
