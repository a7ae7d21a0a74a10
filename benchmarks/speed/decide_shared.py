"""Learning in two processes against one, one thread each, on a ViT-B/32 of random weights.

    python -m benchmarks.speed.decide_shared --folder CACHE [--json FILE]

Each run is `benchmarks.speed.decide` with ``auto`` alone, under torchrun. ``elapsed`` is wall-clock
time; ``seconds`` is the processor time of the first process, which is more informative if other
programs run. The coefficients of both runs are compared entry by entry.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.speed.processes import run, write_results


def learn(processes: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    arguments = [
        "--only",
        "auto",
        "--alone",
        "--steps",
        str(options.steps),
        "--towers",
        options.towers,
    ]
    arguments += [
        "--folder",
        str(options.folder),
        "--coefficients",
        str(folder / f"{processes}.safetensors"),
    ]
    report = folder / f"{processes}.json"
    run(
        [*launcher, "-m", "benchmarks.speed.decide", *arguments, "--json", str(report)],
        {"OMP_NUM_THREADS": "1"},
    )
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["auto"]
    print(f"{processes}: {found}", flush=True)
    return found


def difference(one: Path, other: Path) -> dict[str, float]:
    """The distance between two runs' coefficients, relative to how far they moved from their start
    at 0.5."""
    first, second = load_file(one), load_file(other)
    count = sum(value.numel() for value in first.values())
    moved = sum(float((value - 0.5).double().square().sum()) for value in first.values())
    apart = sum(float((first[name] - second[name]).double().square().sum()) for name in first)
    largest = max(float((first[name] - second[name]).abs().max()) for name in first)
    return {
        "entries": count,
        "moved_root_mean_square": (moved / count) ** 0.5,
        "difference_root_mean_square": (apart / count) ** 0.5,
        "largest_difference": largest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--towers", choices=("both", "vision"), default="vision")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        one, two = (learn(processes, options, folder) for processes in (1, 2))
        apart = difference(folder / "1.safetensors", folder / "2.safetensors")
    settings = {"steps": options.steps, "towers": options.towers}
    ratios = {f"{key}_ratio": one[key] / two[key] for key in ("seconds", "elapsed")}
    write_results(
        options.json,
        {"settings": settings, "one": one, "two": two, **ratios, "coefficients": apart},
    )


if __name__ == "__main__":
    main()
