"""The estimate that long work states before it goes on."""

import time

import pytest
import torch

from clipmerge import progress
from clipmerge.progress import Pace
from tests.support.told import Told


def test_long_work_says_once_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_GLANCE", 0.02)
    monkeypatch.setattr(progress, "_LONG", 1.0)
    slow, quick = Told(), Told()
    for told, total in ((slow, 1000), (quick, 10)):
        pace = Pace(told, torch.device("cpu"), "about", ".")
        for done in range(1, 9):
            time.sleep(0.01)
            pace.advance(done, total)
    assert len(slow.lines) == 1
    assert 10 <= int(slow.lines[0].removeprefix("about ").removesuffix(" s.")) < 60
    assert quick.lines == []


def test_notes_pass_through() -> None:
    told = Told()
    Pace(told, torch.device("cpu"), "about").say("a note")
    assert told.lines == ["a note"]
