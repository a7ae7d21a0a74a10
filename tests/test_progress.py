"""The estimate that long work states before it goes on."""

from __future__ import annotations

import time

import pytest

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
    pace = Pace(said, lambda seconds: f"about {seconds}")
    for number, wait in enumerate(waits, start=1):
        now[0] += wait
        pace.advance(10 * number, 1000)
        if said.notes:
            break
    return said


def test_one_long_wait_does_not_count_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    said = stated(monkeypatch, [30.0, 7.0, *[0.5] * 40])  # the first report is warm-up, the second prepares something
    assert said.notes == ["about 50 s"]
    assert said.moved == 18  # fifteen seconds after the first report


def test_quick_work_is_judged_by_many_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    said = stated(monkeypatch, [3.0, *[0.5] * 99])
    assert said.notes == ["about 50 s"]
    assert said.moved == 24
    assert stated(monkeypatch, [3.0, *[0.05] * 99]).notes == []  # five seconds are not worth a note


def test_slow_work_is_judged_by_few_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    said = stated(monkeypatch, [60.0, 40.0, 40.0, 40.0])
    assert said.notes == ["about 1 h 6 min"]
    assert said.moved == 3


def test_stages_and_notes_pass_through() -> None:
    said = Said()
    pace = Pace(said, None)
    pace.stage("measuring")
    pace.say("a note")
    assert (said.stages, said.notes) == (["measuring"], ["a note"])
