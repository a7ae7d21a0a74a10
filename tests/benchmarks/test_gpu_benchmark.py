"""The benchmark of a GPU, run on the CPU at a tiny size: its cases, its file, and its table."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import BEGIN, FINISH, PAGE, RESULTS, cases, run, table
from clipmerge.errors import UsageError


def test_the_page_has_the_table_of_the_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(FINISH)[0] == table(sorted(RESULTS.glob("*.json")))
    assert table([]) == "Not measured: no GPU has been at hand.\n"


def no_memory() -> dict[str, Any]:
    raise UsageError("no memory")


@pytest.mark.slow
@pytest.mark.uncounted
def test_every_case_is_measured_or_says_why_not(tmp_path: Path) -> None:
    every = cases(tmp_path, "cpu", ["tiny"], images=24, jpegs=20, steps=2)
    every["a size that does not fit"] = no_memory
    run(every, tmp_path / "a.json", {"device": "none", "torch": "0", "tests": "1 passed"}, minutes=30)
    found = json.loads((tmp_path / "a.json").read_text())["cases"]
    assert {name: case for name, case in found.items() if "not_run" in case} == {
        "a size that does not fit": {"not_run": "no memory"}
    }
    assert found["`auto` twice: equal coefficients"]["equal"]
    assert all(case["seconds"] > 0 for case in found.values() if "said" in case)
    run({"late": lambda: {}}, tmp_path / "b.json", {"device": "none", "torch": "0", "tests": ""}, minutes=-1)
    rows = table([tmp_path / "a.json", tmp_path / "b.json"]).splitlines()
    assert len([row for row in rows if row.startswith("| ")]) == len(found) + 1 + 2
    assert rows[-1] == "| late |  |  |  | -1 minutes were over |"
