"""Run the benchmark: `python -m benchmarks.shifts.icons`."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import plugins
from benchmarks.shifts.command import names_in, parser_of, status_of
from benchmarks.shifts.evaluation import Evaluation, contestants, evaluate_pair
from benchmarks.shifts.experiment import locked, pair_name
from benchmarks.shifts.icons.shift import ABOUT, SEEDS, make_pair
from benchmarks.shifts.photos.judging import judged
from benchmarks.shifts.report import RESULTS, write_page
from clipmerge.files.paths import user_cache

_RECIPES = "wise-ft,wise-ft-id,lines,monosoup,straggler-sparse,auto"
# Merged as a user does, with advice; the others are swept together.
_JUDGED = ("straggler-sparse", "auto")


def main() -> None:
    """Make the pairs, and evaluate recipes on each."""
    parser = parser_of(ABOUT, __doc__ or "", _RECIPES)
    parser.add_argument("--images", type=int, default=1024, help="to decide on")
    given = parser.parse_args()
    raise SystemExit(status_of(lambda: _run(given)))


def _run(given: argparse.Namespace) -> None:
    plugins.use()
    folder: Path = given.cache or user_cache(ABOUT.name)
    results: Path = given.results or RESULTS / ABOUT.name
    wanted = names_in(given.only) or (*SEEDS, *ABOUT.pairs)
    names = names_in(given.recipes)
    how = Evaluation(images=given.images)
    for regime, seeds in SEEDS.items():
        for seed in seeds:
            name = pair_name(regime, "", seed)
            if not {regime, name} & set(wanted):
                continue
            with locked(folder / f".{name}.lock"):
                pair = make_pair(folder, regime, seed)
                for judge in (None, judged):
                    entered = [each for each in names if (each in _JUDGED) == bool(judge)]
                    recipes = contestants(only=tuple(entered)) if entered else ()
                    file = results / f"{name}.json"
                    again = names_in(given.again)
                    evaluate_pair(pair, recipes, file, how, again=again, judge=judge)
            print(file)
    if not given.no_page:
        for written in write_page():
            print(written)


if __name__ == "__main__":
    main()
