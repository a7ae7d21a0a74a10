"""The cases of a pretended device in a process of their own.

Autograd's engine counts the kinds of devices at its first backward pass, which other tests run in this process.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import pretended_device

CASES = Path(__file__).with_name("pretended_device_cases.py")


@pytest.mark.slow
@pytest.mark.skipif(not pretended_device.SUPPORTED, reason="torch has no backends in Python before 2.9")
def test_the_cases_pass_in_a_process_of_their_own() -> None:
    coverage = sys.modules.get("coverage")
    counting = ["-m", "coverage", "run"] if coverage and coverage.Coverage.current() else []
    command = [sys.executable, *counting, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(CASES)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=CASES.parents[2])
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^\d+ passed in ", run.stdout, re.MULTILINE), run.stdout  # and none was skipped
