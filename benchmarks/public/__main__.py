"""Reproduce published results by name: `python -m benchmarks.public SUITE`."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.public.cost import cost_of
from benchmarks.public.run import Settings, run_suite
from benchmarks.public.suite import Suite, load_suite, suite_names
from clipmerge.errors import ClipmergeError
from clipmerge.progress import format_seconds
from clipmerge.request import parse_alphas


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.public", description=__doc__)
    parser.add_argument(
        "suite", help=f"a suite ({', '.join(suite_names())}), a YAML file, or 'list'"
    )
    parser.add_argument("--output", type=Path, help="folder to write; bench-SUITE by default")
    parser.add_argument(
        "--dry-run", action="store_true", help="print downloads and time, run nothing"
    )
    parser.add_argument("--limit", type=int, help="images sampled from each source; all by default")
    parser.add_argument("--recipe", action="append", help="in place of the suite's; repeatable")
    parser.add_argument("--alphas", help="points of the curve, in place of the suite's: 0,0.5,1")
    parser.add_argument("--images", type=int, default=1024, help="images that recipes measure on")
    parser.add_argument("--batch-size", type=int, help="images per batch")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps or xpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--no-check", action="store_true", help="go on if zero-shot accuracy is not as published"
    )
    parser.add_argument(
        "--jobs", help="a job of its own for each pair: local, or slurm:KEY=VALUE,..."
    )
    given = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.public", *words])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _run(given, command)
    except ClipmergeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(given: argparse.Namespace, command: str) -> None:
    if given.suite == "list":
        for name in suite_names():
            suite = load_suite(name)
            print(f"{name:22}{suite.title}, {suite.model}")
        return
    suite = load_suite(given.suite)
    settings = Settings(
        recipes=suite.recipes if given.recipe is None else tuple(given.recipe),
        alphas=suite.alphas if given.alphas is None else parse_alphas(given.alphas),
        limit=given.limit,
        images=given.images,
        batch_size=given.batch_size,
        device=given.device,
        seed=given.seed,
    )
    if given.dry_run:
        print(*_cost_lines(suite, settings), sep="\n")
        return
    folder = given.output or Path(f"bench-{Path(given.suite).stem}")
    record = run_suite(
        suite, settings, folder, check=not given.no_check, jobs=given.jobs, command=command
    )
    for pair in record["pairs"]:
        print(f"{pair['name'] or suite.name}: {pair['sweep']['headline']}")
    print(f"Wrote {folder} (page: {folder / suite.name}.md)")


def _cost_lines(suite: Suite, settings: Settings) -> list[str]:
    """What a run would download, and how long it would take."""
    from rich.filesize import decimal

    cost: dict[str, Any] = cost_of(
        suite,
        recipes=len(settings.recipes),
        alphas=len(settings.alphas),
        limit=settings.limit,
        device=settings.device,
    )
    lines = []
    for download in cost["downloads"]:
        size = "?" if download["bytes"] is None else decimal(download["bytes"])
        lines.append(f"{'is here' if download['cached'] else size:>12}  {download['what']}")
    total = "not known" if cost["bytes"] is None else f"at most {decimal(cost['bytes'])}"
    lines.append(f"In all {total}.")
    if cost["seconds"] is None:
        lines.append(
            "The time is unknown: a source does not state its number of images (--limit N sets"
            " one)."
        )
    else:
        lines.append(
            f"{cost['forward_passes']:,} forward passes: about {format_seconds(cost['seconds'])} on"
            f" this machine, at {cost['flops_per_second'] / 1e12:.2g} TFLOP/s (0.4 of the speed of"
            " a matrix product). Recipes that learn take extra time, stated when they begin."
        )
    problems = (download["problem"] for download in cost["downloads"] if download["problem"])
    return [*lines, *dict.fromkeys(problems), *suite.notes]


if __name__ == "__main__":
    raise SystemExit(main())
