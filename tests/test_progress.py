"""The journal of one run forwards each text once, and keeps warnings and times."""

import logging
import sys

import pytest

from clipmerge.progress import Journal, Progress, default_progress
from tests.support.told import Told


def test_a_journal_says_everything_once_and_keeps_warnings_and_seconds() -> None:
    told = Told()
    journal = Journal(told)
    for _ in range(2):
        journal.say("a note")
        journal.warn("a warning")
    journal.stage("learn")
    journal.stage("read")
    journal.stage("draw")
    assert told.lines == ["a note", "a warning"]
    assert journal.warnings == ["a warning"]
    assert list(journal.seconds) == ["read", "learn"]


def test_a_notebook_shows_a_bar_between_notes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert type(default_progress()) is Progress  # neither a terminal nor a notebook
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", None)
    monkeypatch.setattr("clipmerge.progress._SECONDS_TO_BAR", 0)
    shown = default_progress()
    journal = Journal(shown)
    journal.stage("learn")
    for done in (1, 2, 4):
        journal.advance(done, 4)
        journal.warn(f"warning {done}")
    assert "learning  25%" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert type(default_progress()) is Progress  # the main process shows it


def test_without_a_receiver_it_goes_to_pythons_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="clipmerge"):
        journal = Journal(None)
        journal.say("a note")
        journal.warn("a warning")
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "WARNING"]
