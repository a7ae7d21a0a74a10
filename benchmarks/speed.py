"""What a merge costs, as ratios from one run: `python -m benchmarks.speed ZEROSHOT FINETUNED`.

A plain loop that reads two checkpoints and writes one, and a merge of them by clipmerge, run in
turn. Ratios are taken round by round, and medians are printed with their extremes: read the ratios,
not the seconds. None of it is a test: nothing fails if a machine is slow.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

_PIECE = 16 << 20


def merge(pair: list[Path], output: Path) -> None:
    """Merge both by clipmerge, in a process of its own."""
    options = ["-r", "wise-ft", "--alpha", "0.5", "-q", "-o", str(output)]
    command = [sys.executable, "-m", "clipmerge", "merge", *map(str, pair), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def copy(pair: list[Path], output: Path) -> None:
    """Read both files in pieces and write one."""
    files = [next(folder.glob("*.safetensors")) for folder in pair]
    one, other = (file.open("rb", 0) for file in files)
    with one, other, output.open("wb", 0) as out:
        while piece := one.read(_PIECE):
            other.read(_PIECE)
            out.write(piece)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("pair", nargs=2, type=Path, metavar="CHECKPOINT", help="of one file each")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    seconds: dict[str, list[float]] = {"copy": [], "merge": [], "ratio": []}
    for number in range(given.rounds + 1):
        took = {}
        for name, work in (("copy", copy), ("merge", merge)):
            with tempfile.TemporaryDirectory() as scratch:
                begin = time.perf_counter()
                work(given.pair, Path(scratch) / "output")
                took[name] = time.perf_counter() - begin
        took["ratio"] = took["merge"] / took["copy"]
        if number > 0:  # the first round reads into memory what the others find there
            for name, each in took.items():
                seconds[name].append(each)
    for name, values in seconds.items():
        print(f"{name:6}{median(values):8.2f}  ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
