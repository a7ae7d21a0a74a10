"""Bombs: one line or an answer, within 5 seconds of computing and 1 GiB; `python -m tests.bombs` has all of them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.bombs.files import BOMBS

QUICK = [name for name, bomb in BOMBS.items() if not bomb.slow]


def wrong_with(*names: str) -> dict[str, str]:
    command = [sys.executable, "-m", "tests.bombs", *names]  # apart: what fails must not take this process along
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return {line["bomb"]: line["wrong"] for line in map(json.loads, run.stdout.splitlines())}


@pytest.fixture(scope="module")
def wrong() -> dict[str, str]:
    return wrong_with(*QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_bomb_is_read_or_refused_in_little_memory_and_time(wrong: dict[str, str], name: str) -> None:
    found = wrong[name]
    if found.startswith("took"):  # what runs beside it takes processor time too, where cores share their units
        found = wrong_with(name)[name]
    assert not found
