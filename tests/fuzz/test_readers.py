"""Every reader against files that were found, and against some hundred damaged ones; hours of it by one command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clipmerge.errors import DataError
from tests.fuzz import __main__ as fuzzing
from tests.fuzz.targets import TARGETS


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, str]]:
    """What was found with each reader."""
    command = [sys.executable, "-m", "tests.fuzz", "--minutes", "1000", "--executions", "500"]
    run = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    return {line["target"]: line["found"] for line in map(json.loads, run.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_found_and_damaged_files_are_read_or_refused_in_one_line(found: dict[str, dict[str, str]], name: str) -> None:
    assert found[name] == {}


def _fails(data: bytes, _folder: Path) -> None:
    if b"\xff" in data:
        os.kill(os.getpid(), signal.SIGKILL)
    if data:
        raise KeyError("x")
    error = DataError("x")
    error.args = ("two\nlines",)
    raise error


def test_a_fault_is_found_and_its_file_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "class_names", _fails)
    monkeypatch.setattr(fuzzing, "CORPUS", tmp_path)
    assert re.match("not one printable line, ", fuzzing.verdict("class_names", b"", tmp_path))
    count, told = fuzzing.fuzz("class_names", 1e9, 0, 4)
    assert (count, list(told)) == (4, ["KeyError, test_readers.py:_fails"])
    assert Path(told["KeyError, test_readers.py:_fails"]).parent == tmp_path / "class_names"
    (tmp_path / "class_names" / "0").write_bytes(b"\xff")
    _, told = fuzzing.fuzz("class_names", 1e9, 0, 1000)
    assert list(told) == ["ends the process (-9)"]
