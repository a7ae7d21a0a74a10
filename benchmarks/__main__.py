"""Make pairs, judge recipes on them, and write the tables: `python -m benchmarks COMMAND`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from benchmarks.pair_results import PAIRS_FOLDER
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
    page = commands.add_parser("page", help="write the tables from the JSON files again")
    judge = commands.add_parser("judge", help="judge a recipe, and add its row to the leaderboard")
    judge.add_argument("recipe", help="name or file of a recipe")
    judge.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    judge.add_argument("--seed", type=int, default=0, help="of learning")
    judge.add_argument("--who", default="", help="whose row it is")
    equal = commands.add_parser("equal-labels", help="fine-tune on the labels that auto may use")
    references = commands.add_parser("references", help="models that are no merges")
    for command in (judge, equal, references):
        command.add_argument("pairs", nargs="*", default=[SMALLEST], help=f"{SMALLEST} by default")
        command.add_argument("--pictures", type=Path, help="folder of the tar files")
        command.add_argument("--clones", type=Path, help="folder of the clones")
        command.add_argument(
            "--zeroshot", action="append", default=[], metavar="NAME=DIR", help="a ready model"
        )
        command.add_argument("--cache", type=Path, default=_CACHE, help="where pairs are kept")
    for command in (judge, equal, references, page):
        command.add_argument("--results", type=Path, default=PAIRS_FOLDER)
        command.add_argument("--no-page", action="store_true", help="leave the pages as they are")
    return parser


def _run(given: argparse.Namespace) -> None:
    from benchmarks.make_pairs import PAIRS, Places, make

    if given.command == "pairs":
        for name, spec in PAIRS.items():
            print(f"{name:32}{'tuned on' if spec.tuned else 'held out'}")
        return
    if given.command != "page":
        quiet()
        zeroshots = {}
        for word in given.zeroshot:
            name, _, folder = word.partition("=")
            zeroshots[name] = Path(folder)
        places = Places(given.cache, given.pictures, given.clones, zeroshots)
        for name in given.pairs:
            pair = make(name, places)
            if given.command == "judge":
                from benchmarks.judge import judge

                judge(
                    pair,
                    given.recipe,
                    given.settings,
                    seed=given.seed,
                    who=given.who,
                    folder=given.results,
                )
            elif given.command == "equal-labels":
                from benchmarks.equal_labels import equal_labels

                equal_labels(pair, given.results)
            else:
                from benchmarks.references import references

                references(pair, given.results)
    if not given.no_page:
        from benchmarks.page import PICTURE, draw, write_pages

        for page in write_pages(folder=given.results):
            print(page)
        draw(PICTURE, given.results)


def quiet() -> None:
    """Without the progress bars of libraries."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    raise SystemExit(main())
