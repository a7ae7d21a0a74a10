"""Test the paper's claims on the emoji pairs: `python -m benchmarks.emoji_shift.claims`."""

from __future__ import annotations

import argparse
import dataclasses

from benchmarks.emoji_shift.shift import emoji_shift
from benchmarks.shifts.claims import PARTS, examine
from benchmarks.shifts.experiment import cache_folder, prepare
from benchmarks.shifts.report import RESULTS
from benchmarks.shifts.training import logged


def main() -> None:
    """Examine pairs and add what is found to `benchmarks/results/emoji_shift/claims.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emoji_shift.claims", description=__doc__)
    parser.add_argument("pairs", nargs="*", help="regime and seed, such as mild-1; all by default")
    parser.add_argument("--parts", default=",".join(PARTS), help="tests, with commas between")
    given = parser.parse_args()
    folder = cache_folder("emoji_shift")
    shift = emoji_shift(folder)
    wanted = {name: tuple(n for n in seeds if f"{name}-{n}" in given.pairs) for name, seeds in shift.seeds.items()}
    shift = dataclasses.replace(shift, seeds=wanted if given.pairs else shift.seeds)
    with logged():
        for pair in prepare(shift, folder, tuple(shift.regimes)):
            examine(pair, RESULTS / "emoji_shift" / "claims.json", given.parts.split(","))


if __name__ == "__main__":
    main()
