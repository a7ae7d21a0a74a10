"""Every reader against files that were found, and against some hundred damaged ones; hours of it by one command."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fuzz.targets import SLOW, TARGETS

# in a process of its own: what is tried must not take more memory than it may, and an alarm ends what takes too long
SCRIPT = """
import sys, tempfile, warnings
from pathlib import Path
from tests.fuzz.__main__ import corpus, fuzz, verdict
warnings.simplefilter("ignore")
name, most = sys.argv[1], int(sys.argv[2])
with tempfile.TemporaryDirectory() as folder:
    verdict(name, b"", Path(folder))  # imports take their time once
    said = {verdict(name, data, Path(folder)) for data in corpus(name)} - {""}
count, found = fuzz(name, 1e9, 0, most=most)
assert count == most
print(*said, *found.values(), sep="\\n", end="")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_damaged_files_are_read_or_refused_in_one_line(name: str) -> None:
    most = "100" if name in SLOW else "1000"
    run = subprocess.run([sys.executable, "-c", SCRIPT, name, most], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
