"""Count lines per package, and compare them with the ratchet in ``scripts/lines.json``.

``python scripts/lines.py`` prints three numbers of lines for every package of clipmerge, tests, benchmarks and scripts:
in all, of code (without comments, docstrings and blank lines), and of docstrings; and the lines of the Markdown files
in docs. The ratchet is the number of code lines (in docs, of lines) that a package may have: ``tests/test_layout.py``
fails above it. ``--lower`` stores the numbers of today where they are lower. A package may only grow with a note in
``docs/decisions`` that says why: ``--raise PACKAGE`` then stores its number.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RATCHET = Path(__file__).with_suffix(".json")
FOLDERS = ("clipmerge", "tests", "benchmarks", "scripts")


class Lines(NamedTuple):
    """Lines of some files."""

    total: int = 0
    code: int = 0
    docstrings: int = 0

    def plus(self, other: Lines) -> Lines:
        """Add the lines of other files."""
        return Lines(*(one + two for one, two in zip(self, other, strict=True)))


def lines_of_python(text: str) -> Lines:
    r"""Count the lines of a Python file.

    Example:
        >>> lines_of_python('def f():\n    "A docstring."\n\n    return 1  # one\n')
        Lines(total=4, code=2, docstrings=1)
    """
    docstrings: set[int] = set()
    strings: set[int] = set()  # lines of strings that go over several, in which a blank line or a hash is code
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node) is not None:
                docstrings.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        elif isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno != node.lineno:
            strings.update(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = [line.strip() for line in text.splitlines()]
    code = strings | {number for number, line in enumerate(lines, 1) if line and not line.startswith("#")}
    return Lines(len(lines), len(code - docstrings), len(docstrings))


def count(root: Path = ROOT) -> dict[str, Lines]:
    """Count the lines of every package, and under ``docs`` and the names of ``FOLDERS`` those of the whole."""
    counted: dict[str, Lines] = defaultdict(Lines)
    for folder in FOLDERS:
        for file in (root / folder).rglob("*.py"):
            parts = file.relative_to(root).parts
            lines = lines_of_python(file.read_text(encoding="utf-8"))
            for package in dict.fromkeys((folder, "/".join(parts[: min(2, len(parts) - 1)]))):
                counted[package] = counted[package].plus(lines)
    for file in (root / "docs").rglob("*.md"):
        length = len(file.read_text(encoding="utf-8").splitlines())
        counted["docs"] = counted["docs"].plus(Lines(length, length))
    return dict(sorted(counted.items()))


def ratchet() -> dict[str, int]:
    """Read the number of code lines that each package may have."""
    stored: dict[str, int] = json.loads(RATCHET.read_text(encoding="utf-8"))
    return stored


def main() -> None:
    """Print the table, or store numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lower", action="store_true", help="store the numbers that are lower today")
    parser.add_argument("--raise", dest="raised", action="append", default=[], metavar="PACKAGE")
    chosen = parser.parse_args()
    counted = count()
    stored = ratchet() if RATCHET.exists() else {}
    if chosen.lower or chosen.raised:
        for package, lines in counted.items():
            if package not in stored or lines.code < stored[package] or package in chosen.raised:
                stored[package] = lines.code
        stored = {package: stored[package] for package in counted}
        RATCHET.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    print(f"{'':28}{'lines':>8}{'code':>8}{'docstrings':>12}{'ratchet':>9}")
    for package, lines in counted.items():
        above = "  above" if lines.code > stored.get(package, 0) else ""
        print(f"{package:28}{lines.total:8}{lines.code:8}{lines.docstrings:12}{stored.get(package, 0):9}{above}")
    if any(lines.code > stored.get(package, 0) for package, lines in counted.items()):
        sys.exit(1)


if __name__ == "__main__":
    main()
