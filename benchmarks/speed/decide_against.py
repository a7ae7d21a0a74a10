"""A sweep of eleven alphas and ``auto`` on a ViT-B/32, with this checkout and with another one.

    python -m benchmarks.speed.decide_against CHECKOUT --folder CACHE [--json FILE]

The vision tower moves; weights and pictures are random. Both checkouts run the same two commands in
turn: a sweep without recipes, and the plan of ``auto`` with few steps, nothing held back. With one
thread, ratios are those of processor time, including start-up. CHECKOUT may be a `git worktree` of
an earlier commit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import clipmerge
from benchmarks.speed.decide import save_pair
from benchmarks.speed.processes import run, write_results

_HERE = Path(clipmerge.__file__).resolve().parents[1]
_CLASSES = 4


def save_pictures(folder: Path, count: int, seed: int) -> Path:
    """Save random pictures, one subfolder per class, unless they exist."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        path = folder / f"kind {'abcd'[number % _CLASSES]}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((224, 224)).save(path)
    return folder


def commands(options: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """The commands that both checkouts run, by name; each adds ``--output``."""
    pair = [str(path) for path in save_pair(options.folder, "b32", both=False)]
    names = {"val": 0, "id": 1, "ood": 2}
    counts = {"val": options.calibration, "id": options.images, "ood": options.images}
    sources = {
        name: str(save_pictures(folder / name, counts[name], seed)) for name, seed in names.items()
    }
    steps = [
        "--recipe",
        "auto",
        "--data",
        sources["val"],
        "--set",
        f"measure.steps={options.steps}",
    ]
    steps += ["--batch-size", str(options.calibration)]
    return {
        "sweep": [
            "sweep",
            *pair,
            "--id",
            f"id={sources['id']}",
            "--ood",
            f"ood={sources['ood']}",
            "--device",
            "cpu",
        ],
        "auto": ["plan", *pair, *steps, "--set", "measure.start=0.5", "--device", "cpu"],
    }


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    clock = "cpu_seconds" if options.threads == 1 else "seconds"
    for name, arguments in commands(options, folder).items():
        if name not in options.only:
            continue
        for kind, checkout in (("theirs", options.checkout.resolve()), ("ours", _HERE)):
            extra = (
                ["--set", "measure.held_back=0", "--no-verdict"]
                if (kind, name) == ("ours", "auto")
                else []
            )
            output = folder / (f"{kind}-{name}" + (".json" if name == "auto" else ""))
            command = [
                sys.executable,
                "-m",
                "clipmerge",
                *arguments,
                *extra,
                "--output",
                str(output),
            ]
            outcome, _ = run(
                command,
                {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(options.threads)},
                checkout,
            )
            found[f"{name}_{kind}"] = asdict(outcome)
            print(name, kind, outcome, flush=True)
        found[f"{name}_ratio"] = found[f"{name}_theirs"][clock] / found[f"{name}_ours"][clock]
    theirs, ours = (
        sum(found[f"{name}_{kind}"][clock] for name in options.only) for kind in ("theirs", "ours")
    )
    return {**found, "ratio": theirs / ours}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="the other checkout")
    parser.add_argument("--folder", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--images", type=int, default=96, help="pictures of each source")
    parser.add_argument(
        "--calibration",
        type=int,
        default=48,
        help="pictures to learn on, all of them in every step",
    )
    parser.add_argument("--only", nargs="+", choices=("sweep", "auto"), default=["sweep", "auto"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = compare(options, Path(temporary))
    settings = {
        key: value
        for key, value in vars(options).items()
        if key not in ("json", "folder", "checkout")
    }
    write_results(options.json, {"settings": settings, **found})


if __name__ == "__main__":
    main()
