"""Real pictures: make the pairs, judge recipes on them, and write the results page; each step
once."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import plugins
from benchmarks.shifts.command import each_of, names_in, parser_of, status_of
from benchmarks.shifts.evaluation import Evaluation, contestants
from benchmarks.shifts.photos.job import Job
from benchmarks.shifts.photos.pairs import ABOUT, chosen_pairs
from benchmarks.shifts.photos.testbed import Photos, Settings
from benchmarks.shifts.report import RESULTS, write_page
from benchmarks.shifts.training import logged
from clipmerge.errors import UsageError
from clipmerge.files.paths import user_cache

_RECIPES = "auto,straggler-sparse"


@dataclass(frozen=True)
class _Job(Job[Photos]):
    def zeroshot(self, backbone: str) -> Path:
        with logged():
            return self.testbed.make_zeroshot(backbone)


def main(
    arguments: list[str] | None = None,
    settings: Settings | None = None,
    how: Evaluation | None = None,
) -> int:
    """Run the benchmark."""
    parser = parser_of(ABOUT, __doc__ or "", _RECIPES)
    parser.add_argument(
        "--pictures",
        type=Path,
        required=True,
        help="folder of the tar files, see benchmarks/README.md",
    )
    parser.add_argument(
        "--zeroshot",
        default="",
        help="ready zero-shot models, lite0=DIR,lite2=DIR; taught by default",
    )
    parser.add_argument(
        "--train", action="store_true", help="train the models and evaluate nothing"
    )
    parser.add_argument(
        "--tested", type=int, default=0, help="test pictures of one source; all by default"
    )
    parser.add_argument("--no-labels", action="store_true", help="decide on images alone")
    given = parser.parse_args(arguments)
    how = replace(how or Evaluation(), labels=not given.no_labels)
    chosen = replace(settings or Settings(), tested=given.tested)
    return status_of(lambda: _run(given, chosen, how))


def _run(given: argparse.Namespace, settings: Settings, how: Evaluation) -> None:
    plugins.use()
    ready = _ready(given.zeroshot, settings)
    photos = Photos(given.pictures, given.cache or user_cache(ABOUT.name), ready, settings)
    recipes, pairs = names_in(given.recipes), chosen_pairs(names_in(given.only))
    contestants(only=recipes)
    job = _Job(photos, given.results or RESULTS / ABOUT.name, recipes, names_in(given.again), how)
    for _ in each_of(job.zeroshot, sorted({spec.backbone for spec in pairs}), given.jobs):
        pass
    for made in each_of(job.models if given.train else job.pair, pairs, given.jobs):
        print(made)
    if not (given.train or given.no_page):
        for written in write_page():
            print(written)


def _ready(text: str, settings: Settings) -> dict[str, Path]:
    ready = {}
    for word in names_in(text):
        name, _, folder = word.partition("=")
        if name not in settings.backbones or not Path(folder).is_dir():
            raise UsageError(
                f"--zeroshot {word}: expected BACKBONE=DIR with one of"
                f" {', '.join(settings.backbones)}"
            )
        ready[name] = Path(folder)
    return ready


if __name__ == "__main__":
    raise SystemExit(main())
