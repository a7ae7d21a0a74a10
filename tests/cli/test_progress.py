"""Progress, how long a command took, and errors on a narrow terminal."""

from __future__ import annotations

import sys

import pytest

from clipmerge.cli import _ending
from clipmerge.cli._ending import fail
from clipmerge.cli._terminal import LINE_SECONDS, Format, Terminal


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("fmt", [Format.human, Format.json])
def test_off_a_terminal_progress_is_a_line_now_and_then(fmt: Format, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    terminal = Terminal(fmt, clock=clock)
    terminal.stage("measure")
    for done in range(1, 41):
        clock.now += 1
        terminal.advance(done, 80)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"measuring: {share}%, {after} s elapsed, {left} left"
        for share, after, left in ((12, 10, "1 min 10 s"), (25, 20, "1 min 0 s"), (38, 30, "50 s"), (50, 40, "40 s"))
    ]
    assert LINE_SECONDS == 10


def test_a_bar_tells_the_time_left_once_the_pace_is_known_and_goes_when_it_is_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    clock = Clock()
    terminal = Terminal(Format.human, clock=clock)
    terminal.stage("auto: learning")
    seen = []
    for done in (1, 2, 3, 4):
        clock.now += 1.5
        terminal.advance(done, 4)
        if terminal._bar is not None:
            seen.append(terminal._bar.tasks[0].fields["times"])
            terminal._bar.refresh()
    assert seen == ["2 s elapsed", "3 s elapsed", "4 s elapsed, 2 s left"]
    assert terminal._bar is None
    assert "auto: learning" in capsys.readouterr().err


def test_a_quiet_command_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    terminal = Terminal(Format.quiet, clock=clock)
    terminal.stage("measure")
    clock.now += 60
    terminal.advance(1, 2)
    terminal.end("Wrote out")
    assert capsys.readouterr() == ("", "")


def test_the_last_line_is_how_long_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    terminal = Terminal(Format.human, clock=clock)
    clock.now += 83
    terminal.end("Wrote out")
    assert capsys.readouterr().out == "Wrote out\nTook 1 min 23 s.\n"


def test_an_error_takes_the_bar_down_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    terminal = Terminal(Format.human)
    terminal.stage("measure")
    terminal.advance(1, 2)
    assert terminal._bar is not None
    with pytest.raises(SystemExit):
        fail("interrupted", 130)
    assert terminal._bar is None
    assert _ending.before_the_error == []
    assert capsys.readouterr().err.splitlines()[-1].endswith("error: interrupted")


def test_a_name_in_brackets_is_text_in_a_progress_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    terminal = Terminal(Format.human)
    terminal.stage("evaluating [/x] [link=file:///etc]y[/link]")
    terminal.advance(1, 2)
    assert terminal._bar is not None
    terminal._bar.refresh()
    terminal.close()
    assert "evaluating [/x] [link=file:///etc]y[/link]" in capsys.readouterr().err


def test_errors_and_notes_break_between_words_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    text = "the quick straggler-sparse recipe jumps over a lazy checkpoint " * 4
    Terminal(Format.human).say(text)
    with pytest.raises(SystemExit):
        fail(text, 1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 8
    assert all(len(line.rstrip()) <= 60 for line in lines)
    assert " ".join(" ".join(lines).split()) == " ".join(f"note: {text} error: {text}".split())
