"""Reproduce published results by name: `python -m benchmarks.public SUITE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.public import RECIPES, find, run, suites
from clipmerge.errors import ClipmergeError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.public", description=__doc__)
    parser.add_argument("suite", help="a suite, or 'list'")
    parser.add_argument("--output", type=Path, help="folder to write; bench-SUITE by default")
    parser.add_argument("--recipe", action="append", help="repeatable; " + ", ".join(RECIPES))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps or xpu")
    given = parser.parse_args(arguments)
    if given.suite == "list":
        print(*suites(), sep="\n")
        return 0
    folder = given.output or Path(f"bench-{given.suite}")
    try:
        print(run(find(given.suite), folder, given.recipe or RECIPES, device=given.device))
    except ClipmergeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
