"""Make pairs, judge recipes on them, and write the tables: `python -m benchmarks COMMAND`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import datasets
import transformers

from benchmarks.equal_labels import equal_labels
from benchmarks.judge import judge
from benchmarks.make_pairs import PAIRS, make
from benchmarks.make_pairs.pair import Pair, Places
from benchmarks.page import PICTURE, draw, write_pages
from benchmarks.pair_results import PAIRS_FOLDER
from benchmarks.references import references
from clipmerge.errors import ClipmergeError

SMALLEST = "aggressive-digits-0"
_CACHE = Path.home() / ".cache" / "clipmerge-benchmarks"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        _run(given)
    except ClipmergeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("pairs", help="list every pair")
    commands.add_parser("page", help="write the tables from the JSON files again")
    judging = commands.add_parser("judge", help="judge a recipe, and add its row")
    judging.add_argument("recipe", help="name or file of a recipe")
    judging.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    judging.add_argument("--seed", type=int, default=0, help="of learning")
    judging.add_argument("--labels-of", metavar="PAIR", help="whose --labels, as another task")
    judging.add_argument("--and-shift", action="store_true", help="with --labels-of: both")
    judging.add_argument("--captions", action="store_true", help="of a shift, for its classes")
    judging.add_argument("--who", default="", help="whose row it is")
    equal = commands.add_parser("equal-labels", help="fine-tune on the labels that auto may use")
    for command in (judging, equal):
        command.add_argument("--labels", type=int, default=0, help="labels of a shift to use, too")
    others = commands.add_parser("references", help="models that are no merges")
    for command in (judging, equal, others):
        command.add_argument("pairs", nargs="*", default=[SMALLEST], help=f"{SMALLEST} by default")
        command.add_argument("--pictures", type=Path, help="folder of the tar files")
        command.add_argument("--clones", type=Path, help="folder of the clones")
        command.add_argument(
            "--zeroshot", action="append", default=[], metavar="NAME=DIR", help="a ready model"
        )
        command.add_argument("--cache", type=Path, default=_CACHE, help="where pairs are kept")
        command.add_argument(
            "--results", type=Path, default=PAIRS_FOLDER, help="another one leaves the pages alone"
        )
    return parser


def _run(given: argparse.Namespace) -> None:
    if given.command == "pairs":
        for name, spec in PAIRS.items():
            print(f"{name:32}{'tuned on' if spec.tuned else 'held out'}")
        return
    if given.command != "page":
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
        zeroshots = {}
        for word in given.zeroshot:
            name, _, folder = word.partition("=")
            zeroshots[name] = Path(folder)
        places = Places(given.cache, given.pictures, given.clones, zeroshots)
        for name in given.pairs:
            _add_results(make(name, places), given, places)
    if given.command == "page" or given.results == PAIRS_FOLDER:
        for page in write_pages():
            print(page)
        draw(PICTURE)


def _add_results(pair: Pair, given: argparse.Namespace, places: Places) -> None:
    folder = given.results
    if given.command == "equal-labels":
        equal_labels(pair, folder, given.labels)
    elif given.command == "references":
        references(pair, folder)
    else:
        other = make(given.labels_of, places) if given.labels_of else None
        judge(
            pair,
            given.recipe,
            given.settings,
            seed=given.seed,
            labels=given.labels,
            other=other,
            and_shift=given.and_shift,
            captions=given.captions,
            who=given.who,
            folder=folder,
        )


if __name__ == "__main__":
    raise SystemExit(main())
