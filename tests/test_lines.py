"""The ratchet on code lines per package, and the script that counts them."""

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
