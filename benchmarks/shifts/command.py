"""The command of a benchmark: data, training, every recipe on every pair, and the results page; each step once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.shifts.evaluation import Evaluation, contestants, evaluate_pair
from benchmarks.shifts.experiment import Shift, cache_folder, prepare
from benchmarks.shifts.report import RESULTS, write_page
from benchmarks.shifts.training import logged
from clipmerge.errors import ClipmergeError

#: Cache folder and whether it is the quick size, to the benchmark.
Layout = Callable[[Path, bool], Shift]
_QUICK_RECIPES = ("wise-ft", "lines", "monosoup", "straggler-sparse", "auto")
_QUICK = Evaluation(alphas=(0.0, 0.25, 0.5, 0.75, 1.0), images=64)


def run(name: str, layout: Layout, arguments: list[str] | None = None) -> int:
    """Run one benchmark.

    Args:
        name: Its name, also of its folder in the cache and among the results.
        layout: Lays it out.
        arguments: Of the command line.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few classes and steps, one pair; under two minutes")
    parser.add_argument("--cache", type=Path, default=None, help="where data and models are kept")
    parser.add_argument("--results", type=Path, default=None, help="where a JSON file a pair goes")
    parser.add_argument("--only", default="", help="regimes to do, with commas between; all by default")
    parser.add_argument("--recipes", default="", help="contestants to compare, with commas between; all by default")
    parser.add_argument("--again", default="", help="contestants to compare anew: the code behind them has changed")
    parser.add_argument("--no-page", action="store_true", help="leave docs/results.md as it is")
    given = parser.parse_args(arguments)
    try:
        with logged():
            _run(name, layout, given)
    except ClipmergeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(name: str, layout: Layout, given: argparse.Namespace) -> None:
    folder = given.cache or cache_folder(name + ("-quick" if given.quick else ""))
    # a quick run says nothing about recipes, so it stays out of the results
    results = given.results or (folder / "results" if given.quick else RESULTS / name)
    recipes = contestants(only=_names(given.recipes) or (_QUICK_RECIPES if given.quick else ()))
    shift = layout(folder, given.quick)
    regimes = _names(given.only) or tuple(shift.regimes)
    pairs = prepare(shift, folder, regimes)
    for pair in pairs:
        file = results / f"{pair.name}.json"
        evaluate_pair(pair, recipes, file, _QUICK if given.quick else None, again=_names(given.again))
        print(f"{file}")
    if not (given.no_page or given.quick):
        for written in write_page():
            print(written)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)
