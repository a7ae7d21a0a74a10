"""Every reader against files that were found, and against some hundred damaged ones; hours of it by one command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipmerge.errors import DataError
from tests.fuzz import __main__ as fuzzing
from tests.fuzz import worker
from tests.fuzz.targets import TARGETS, Target


@pytest.fixture(scope="module")
def wrong() -> dict[str, dict[str, list[str]]]:
    """What is wrong with each reader's files, by the way that they came."""
    run = subprocess.run([sys.executable, "-m", "tests.fuzz.every_reader"], stdout=subprocess.PIPE, check=True)
    return {name: kinds for line in run.stdout.splitlines() for name, kinds in json.loads(line).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_found_and_damaged_files_are_read_or_refused_in_one_line(
    wrong: dict[str, dict[str, list[str]]], name: str
) -> None:
    # `python -m tests.fuzz --target NAME --executions 1000` keeps the file
    assert wrong[name] == {"found": [], "damaged": []}


# --- that faults would be found ---


def _fails(_data: bytes, _folder: Path) -> None:
    raise KeyError("x")


def _says_two_lines(_data: bytes, _folder: Path) -> None:
    error = DataError("x")
    error.args = ("two\nlines",)
    raise error


def _takes_long(_data: bytes, _folder: Path) -> None:
    begin = time.process_time()
    while time.process_time() - begin < 0.2:
        pass


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        (_fails, r"KeyError, test_readers\.py:_fails"),
        (_says_two_lines, r"not one printable line, test_readers\.py:_says_two_lines"),
        (_takes_long, "took 0 s"),
    ],
)
def test_a_fault_is_told(reader: Target, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "header", reader)
    monkeypatch.setattr(worker, "SLOWEST", 0.1)
    assert re.fullmatch(said, worker.verdict("header", b"", tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "said"),
    [("os.abort()", r"ends the process \(-6\).*"), ("b'x' * (1 << 28)", r"took \d+ MiB more")],
)
def test_what_ends_a_process_or_fills_memory_is_kept(
    body: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzzing, "CORPUS", tmp_path)
    script = f"""
import os
from tests.fuzz import targets, worker
worker.LARGEST = 1 << 27
tries = iter(range(100))
targets.TARGETS["class_names"] = lambda data, folder: next(tries) and {body}
worker.main()
"""
    count, found = fuzzing.fuzz("class_names", 1e9, 0, 3, worker=("-c", script))
    ((place, told),) = found.items()
    assert count == 3
    assert Path(place).parent == tmp_path / "class_names"
    assert re.fullmatch(said, told, re.DOTALL)
