"""What a merge costs, as ratios from one run: `python -m benchmarks.speed ZEROSHOT FINETUNED`.

A plain loop that reads two checkpoints and writes one, and a merge of them by clipmerge, run in
turn. Ratios are taken round by round, and medians are printed with their extremes: read the ratios,
not the seconds. None of it is a test: nothing fails if a machine is slow.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_PIECE = 16 << 20


def merge(pair: list[Path], output: Path) -> float:
    """Wall-clock seconds of a merge."""
    options = ["-r", "wise-ft", "--alpha", "0.5", "-q", "-o", str(output)]
    command = [sys.executable, "-m", "clipmerge", "merge", *map(str, pair), *options]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    shutil.rmtree(output)
    return seconds


def copy(pair: list[Path], output: Path) -> float:
    """Wall-clock seconds of reading both files in pieces and writing one."""
    files = [next(folder.glob("*.safetensors")) for folder in pair]
    begin = time.perf_counter()
    with (
        files[0].open("rb", 0) as one,
        files[1].open("rb", 0) as other,
        output.open("wb", 0) as out,
    ):
        while piece := one.read(_PIECE):
            other.read(_PIECE)
            out.write(piece)
    seconds = time.perf_counter() - begin
    output.unlink()
    return seconds


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("pair", nargs=2, type=Path, metavar="CHECKPOINT", help="of one file each")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    merges, copies = [], []
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "output"
        for _ in range(given.rounds + 1):
            copies.append(copy(given.pair, output))
            merges.append(merge(given.pair, output))
    # the first round reads into memory what the others find there
    ratios = [ours / its for ours, its in zip(merges[1:], copies[1:], strict=True)]
    print(f"copy {statistics.median(copies[1:]):8.2f} s")
    print(f"merge {statistics.median(merges[1:]):7.2f} s")
    print(f"ratio {statistics.median(ratios):7.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
