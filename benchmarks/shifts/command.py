"""The command of a benchmark: data, training, every recipe on every pair, and the results page;
each step once."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks import plugins
from benchmarks.shifts.evaluation import Evaluation, contestants, evaluate_pair
from benchmarks.shifts.experiment import (
    About,
    Shift,
    chosen_pairs,
    locked,
    make_images,
    make_pair,
    make_zeroshot,
)
from benchmarks.shifts.report import RESULTS, write_page
from benchmarks.shifts.training import logged
from clipmerge.errors import ClipmergeError
from clipmerge.files.paths import user_cache

#: Function that makes the benchmark from the cache folder and whether it is the quick size.
Layout = Callable[[Path, bool], Shift]
_QUICK_RECIPES = ("wise-ft", "lines", "monosoup", "straggler-sparse", "auto")
T = TypeVar("T")
R = TypeVar("R")
_QUICK = Evaluation(alphas=(0.0, 0.25, 0.5, 0.75, 1.0), images=64)


def run(about: About, layout: Layout, arguments: list[str] | None = None) -> int:
    """Run one benchmark."""
    parser = parser_of(about, __doc__ or "")
    parser.add_argument(
        "--quick", action="store_true", help="few classes and steps, one pair; under two minutes"
    )
    given = parser.parse_args(arguments)
    return status_of(lambda: _run(about.name, layout, given))


def parser_of(about: About, description: str, recipes: str = "") -> argparse.ArgumentParser:
    """The arguments that every benchmark takes."""
    parser = argparse.ArgumentParser(prog=about.command, description=description)
    parser.add_argument("--cache", type=Path, default=None, help="where data and models are kept")
    parser.add_argument(
        "--results", type=Path, default=None, help="folder for the JSON files, one per pair"
    )
    parser.add_argument(
        "--only", default="", help="pairs, or groups of them, with commas between; all by default"
    )
    parser.add_argument(
        "--recipes",
        default=recipes,
        help=f"contestants to compare, with commas between; by default {recipes or 'all'}",
    )
    parser.add_argument(
        "--again", default="", help="contestants to compare again, because their code has changed"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="pairs processed at the same time, on one thread each"
    )
    parser.add_argument(
        "--no-page", action="store_true", help="do not change docs/research/results.md"
    )
    return parser


def status_of(work: Callable[[], None]) -> int:
    """Run with progress on stderr; an error is one line and exit status 1."""
    try:
        with logged():
            work()
    except ClipmergeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


@dataclass(frozen=True)
class _Job:
    """Settings shared by all processes of one run."""

    layout: Layout
    folder: Path
    results: Path
    quick: bool
    recipes: tuple[str, ...]
    again: tuple[str, ...]

    def shift(self) -> Shift:
        laid_out = self.layout(self.folder, self.quick)
        return laid_out.quick() if self.quick else laid_out

    def zeroshot(self, seed: int) -> None:
        with logged():
            make_zeroshot(self.shift(), self.folder, seed)

    def pair(self, which: tuple[str, int]) -> Path:
        file = self.results / f"{which[0]}-{which[1]}.json"
        # another process working on the same pair would lose rows
        with logged(), locked(self.folder / f".{file.stem}.lock"):
            pair = make_pair(self.shift(), self.folder, *which)
            recipes = contestants(only=self.recipes)
            evaluate_pair(pair, recipes, file, _QUICK if self.quick else None, again=self.again)
        return file


def _run(name: str, layout: Layout, given: argparse.Namespace) -> None:
    plugins.use()
    folder = given.cache or user_cache(name + ("-quick" if given.quick else ""))
    # a quick run says nothing about recipes, so it is left out of the results
    results = given.results or (folder / "results" if given.quick else RESULTS / name)
    recipes = names_in(given.recipes) or (_QUICK_RECIPES if given.quick else ())
    job = _Job(layout, folder, results, given.quick, recipes, names_in(given.again))
    contestants(only=recipes)
    shift = job.shift()
    pairs = chosen_pairs(shift, names_in(given.only) or tuple(shift.seeds))
    make_images(shift, folder)
    seeds = sorted({shift.zeroshot_seeds.get(seed, 0) for _, seed in pairs})
    for _ in each_of(job.zeroshot, seeds, given.jobs):
        pass
    for file in each_of(job.pair, pairs, given.jobs):
        print(file)
    if not (given.no_page or given.quick):
        for written in write_page():
            print(written)


def each_of(work: Callable[[T], R], items: Iterable[T], jobs: int) -> Iterator[R]:
    """Process items in order, in this many processes."""
    if jobs == 1:
        yield from map(work, items)
        return
    # forked processes would inherit torch's threads in an undefined state
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, items)


def names_in(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(name for name in text.split(",") if name)
