"""What a merge costs, as ratios from one run: `python -m benchmarks.speed ZEROSHOT FINETUNED`.

A plain loop that reads two checkpoints and writes one, and a merge of them by clipmerge, run in
turn. Ratios are taken round by round, and medians are printed with their extremes: read the ratios,
not the seconds. None of it is a test: nothing fails if a machine is slow. ``--against CHECKOUT``
adds the merge of another checkout of clipmerge.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_PIECE = 16 << 20
#: Runs once and gives its wall-clock seconds.
Contestant = Callable[[], float]


def run(command: list[str], checkout: Path | None = None) -> float:
    """Run a command to its end, with the code of another checkout if one is given."""
    # an installed program has its bytecode; if it could not be written, every run would compile
    variables = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    variables |= {"PYTHONPATH": str(checkout)} if checkout else {}
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=checkout)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return seconds


def contestants(pair: list[Path], output: Path, against: Path | None) -> dict[str, Contestant]:
    """The loop, the merge, and that of another checkout if one is given, by name."""
    files = [next(folder.glob("*.safetensors")) for folder in pair]
    options = ["-r", "wise-ft", "--alpha", "0.5", "-q", "-o", str(output)]
    command = [sys.executable, "-m", "clipmerge", "merge", *map(str, pair), *options]

    def merge(checkout: Path | None) -> float:
        seconds = run(command, checkout)
        shutil.rmtree(output)
        return seconds

    chosen = {"floor": lambda: _floor(files, output), "clipmerge": lambda: merge(None)}
    if against:
        chosen["before"] = lambda: merge(against.resolve())
    return chosen


def _floor(files: list[Path], output: Path) -> float:
    """Read both files in pieces and write one."""
    output.mkdir(parents=True)
    begin = time.perf_counter()
    with (
        files[0].open("rb", 0) as one,
        files[1].open("rb", 0) as other,
        (output / "floor").open("wb", 0) as out,
    ):
        while piece := one.read(_PIECE):
            other.read(_PIECE)
            out.write(piece)
    seconds = time.perf_counter() - begin
    shutil.rmtree(output)
    return seconds


def compare(chosen: Mapping[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Run all in turn, beginning with another one each time; the first round is not counted."""
    names = list(chosen)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds = chosen[name]()
            print(f"{name}: {seconds:.2f} s", file=sys.stderr, flush=True)
            if number:
                found[name].append(seconds)
    return found


def ratios(found: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """The merge's time in those of the others.

    Example:
        >>> ratios({"floor": [2.0], "clipmerge": [3.0]})
        {'clipmerge / floor': [1.5]}
    """
    told = {}
    for name in found:
        if name != "clipmerge":
            both = zip(found["clipmerge"], found[name], strict=True)
            told[f"clipmerge / {name}"] = [ours / its for ours, its in both]
    return told


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("pair", nargs=2, type=Path, metavar="CHECKPOINT", help="of one file each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    given = parser.parse_args(arguments)
    pair = [folder.resolve() for folder in given.pair]
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "output"
        found = compare(contestants(pair, output, given.against), given.rounds)
    for name, each in found.items():
        print(f"{name:24} {statistics.median(each):6.2f} s")
    for name, values in ratios(found).items():
        median = statistics.median(values)
        print(f"{name:24} {median:6.2f}  ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
