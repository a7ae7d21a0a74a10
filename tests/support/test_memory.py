"""The peak of a process is its own, however large the process that started it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = "from tests.support.memory import peak; before = peak(); held = b'x' * (64 << 20); print(before, peak())"


def test_a_child_begins_with_its_own_peak() -> None:
    large = b"x" * (256 << 20)
    ended = subprocess.run(
        [sys.executable, "-c", CODE], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    del large
    before, after = map(int, ended.stdout.split())
    assert before < 128 << 20
    assert 64 << 20 <= after - before < 96 << 20
