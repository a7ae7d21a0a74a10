"""Test the paper's claims on the emoji pairs: `python -m benchmarks.shifts.emoji.claims`."""

from __future__ import annotations

import argparse

from benchmarks import plugins
from benchmarks.shifts.claims import PARTS, examine
from benchmarks.shifts.emoji.shift import ABOUT, emoji_shift
from benchmarks.shifts.experiment import prepare
from benchmarks.shifts.report import RESULTS
from benchmarks.shifts.training import logged
from clipmerge.files.paths import user_cache


def main() -> None:
    """Examine pairs and add what is found to `benchmarks/results/emoji_shift/claims.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shifts.emoji.claims", description=__doc__
    )
    parser.add_argument("pairs", nargs="*", help="regime and seed, such as mild-1; all by default")
    parser.add_argument("--parts", default=",".join(PARTS), help="tests, with commas between")
    given = parser.parse_args()
    plugins.use()
    folder = user_cache(ABOUT.name)
    shift = emoji_shift(folder)
    with logged():
        for pair in prepare(shift, folder, given.pairs or tuple(shift.regimes)):
            examine(pair, RESULTS / ABOUT.name / "claims.json", given.parts.split(","))


if __name__ == "__main__":
    main()
