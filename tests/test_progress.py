"""The estimate that long work states before it goes on."""

import time

import pytest
import torch

from clipmerge.progress import Pace


class Said:
    """Keeps stages and notes, and how many reports came before them."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []
        self.moved = 0

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def advance(self, done: float, total: float) -> None:
        self.moved += 1

    def say(self, text: str) -> None:
        self.notes.append(text)


def stated(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Said:
    """Work of 1,000 units, 10 of them after each wait."""
    now, said = [100.0], Said()
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    pace = Pace(said, torch.device("cpu"), "about", ".")
    for number, wait in enumerate(waits, start=1):
        now[0] += wait
        pace.advance(10 * number, 1000)
        if said.notes:
            break
    return said


def test_long_work_says_once_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    said = stated(monkeypatch, [30.0, *[4.0] * 40])  # the first report is warm-up
    assert said.notes == ["about 6 min 36 s."]
    assert said.moved == 4
    assert stated(monkeypatch, [3.0, *[0.2] * 99]).notes == []  # twenty seconds are not worth a note


def test_notes_pass_through() -> None:
    said = Said()
    Pace(said, torch.device("cpu"), "about").say("a note")
    assert said.notes == ["a note"]
