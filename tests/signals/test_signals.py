"""A few signals at random moments; `python -m tests.signals` sends hundreds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.signals.trial import Ended, _wrong_with


@pytest.mark.slow
def test_commands_stopped_at_random_moments_leave_all_or_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.signals", "--count", "6", "--seed", "1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]


PLAIN = "error: interrupted; nothing was left behind"


@pytest.mark.parametrize(
    ("ended", "state", "told"),
    [
        (Ended(130, [PLAIN]), "before", ""),
        (Ended(130, ["note: x", "auto: learning: 36%, 10 s elapsed, 14 s left", PLAIN]), "before", ""),
        (Ended(143, [PLAIN]), "before", "another exit code"),
        (Ended(130, [PLAIN, "more"]), "before", "not one line"),
        (Ended(130, [PLAIN]), "after", "the line is not true"),
        (Ended(130, ["error: interrupted; out is complete"]), "before", "the line is not true"),
    ],
)
def test_an_end_that_may_not_be_is_seen(ended: Ended, state: str, told: str) -> None:
    said = _wrong_with(ended, signal.SIGINT, state)
    assert said.startswith(told)
    assert bool(said) is bool(told)
