"""The estimate that long work states before it goes on."""

import time

import pytest
import torch

from clipmerge.progress import Pace
from tests.support.told import Told


def stated(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> tuple[list[str], int]:
    """What is said in work of 1,000 units, 10 of them after each wait, and the number of waits
    until then."""
    now, told, number = [100.0], Told(), 0
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    pace = Pace(told, torch.device("cpu"), "about", ".")
    for number, wait in enumerate(waits, start=1):
        now[0] += wait
        pace.advance(10 * number, 1000)
        if told.lines:
            break
    return told.lines, number


def test_long_work_says_once_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stated(monkeypatch, [30.0, *[4.0] * 40]) == (
        ["about 6 min 36 s."],
        4,
    )  # the first report is warm-up
    assert stated(monkeypatch, [3.0, *[0.2] * 99]) == (
        [],
        100,
    )  # twenty seconds are not worth a note


def test_notes_pass_through() -> None:
    told = Told()
    Pace(told, torch.device("cpu"), "about").say("a note")
    assert told.lines == ["a note"]
