"""Targets with natural shifts: make the pairs, judge recipes on them, and write the results page;
each step once."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import plugins
from benchmarks.shifts.command import each_of, names_in, parser_of, status_of
from benchmarks.shifts.evaluation import Evaluation
from benchmarks.shifts.natural.pairs import ABOUT, chosen_pairs
from benchmarks.shifts.natural.testbed import Natural, Settings
from benchmarks.shifts.photos.job import Job
from benchmarks.shifts.report import RESULTS, write_page
from benchmarks.shifts.summary import QUARTER
from clipmerge.files.paths import user_cache

#: Points of the curve: merges lie in its upper half.
_ALPHAS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def main(
    arguments: list[str] | None = None,
    settings: Settings | None = None,
    how: Evaluation | None = None,
) -> int:
    """Run the benchmark."""
    parser = parser_of(ABOUT, __doc__ or "", QUARTER)
    parser.add_argument(
        "--clones", type=Path, required=True, help="folder of the clones, see benchmarks/README.md"
    )
    parser.add_argument(
        "--samples", type=Path, required=True, help="tar file of ImageNet's samples"
    )
    parser.add_argument(
        "--zeroshot", type=Path, required=True, help="zero-shot model that `photos` made"
    )
    parser.add_argument(
        "--train", action="store_true", help="train the models and evaluate nothing"
    )
    given = parser.parse_args(arguments)
    return status_of(lambda: _run(given, settings or Settings(), how or Evaluation(_ALPHAS)))


def _run(given: argparse.Namespace, settings: Settings, how: Evaluation) -> None:
    plugins.use()
    cache = given.cache or user_cache(ABOUT.name)
    natural = Natural(given.clones, given.samples, given.zeroshot, cache, settings)
    pairs = chosen_pairs(names_in(given.only))
    results = given.results or RESULTS / ABOUT.name
    job = Job(natural, results, names_in(given.recipes), names_in(given.again), how)
    for made in each_of(job.models if given.train else job.pair, pairs, given.jobs):
        print(made)
    if not (given.train or given.no_page):
        for written in write_page():
            print(written)


if __name__ == "__main__":
    raise SystemExit(main())
