"""The ratchet on code lines per package, and the script that counts them."""

from __future__ import annotations

import runpy
from pathlib import Path

LINES = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "lines.py"))


def test_no_package_is_above_its_ratchet() -> None:
    stored = LINES["ratchet"]()
    above = {
        package: f"{lines.code} lines of code, at most {stored.get(package, 0)}"
        for package, lines in LINES["count"]().items()
        if lines.code > stored.get(package, 0)
    }
    assert above == {}, "make it shorter, or note in docs/decisions why it grew and `scripts/lines.py --raise PACKAGE`"


def test_lines_are_code_docstrings_comments_or_blank(tmp_path: Path) -> None:
    lines = [
        *('"""One', 'module."""', ""),
        *('TEXT = """no', 'docstring"""', "", ""),
        *("def f(", "    a,  # a comment", "):", '    """One."""', "    # why", "    return a"),
    ]
    folder = tmp_path / "clipmerge" / "merging" / "inner"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text("\n".join(lines) + "\n")
    (tmp_path / "clipmerge" / "b.py").write_text("B = 1\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("# Page\n\nText.\n")
    counted = LINES["count"](tmp_path)
    assert {name: tuple(lines) for name, lines in counted.items()} == {
        "clipmerge": (14, 7, 3),
        "clipmerge/merging": (13, 6, 3),
        "docs": (3, 3, 0),
    }
