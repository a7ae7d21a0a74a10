"""Output on stdout and stderr, progress, and the end of commands for every exception."""

import json
import sys
from collections.abc import Callable

import pytest
import typer

from clipmerge.cli import _ending
from clipmerge.cli import app as cli
from clipmerge.cli._ending import DEBUG, fail, reporting_errors
from clipmerge.cli._terminal import LINE_SECONDS, Format, Terminal
from clipmerge.errors import ClipmergeError, OutputError, UsageError
from tests.support.command import clipmerge


def raising(error: BaseException) -> Callable[[], None]:
    @reporting_errors
    def command() -> None:
        raise error

    return command


class OutOfMemoryError(RuntimeError):
    """Named like torch's own class."""


ENDINGS: dict[str, tuple[BaseException, int, str]] = {
    "ours": (OutputError("out: already exists"), 1, "error: out: already exists\n"),
    "usage": (UsageError("--x: wrong"), 2, "error: --x: wrong\n"),
    "several lines": (ClipmergeError("a\n  b\n"), 1, "error: a b\n"),
    "interrupted": (KeyboardInterrupt(), 130, "error: interrupted; nothing was left behind\n"),
    "system": (PermissionError(13, "Permission denied", "x"), 1, "error: x: Permission denied"),
    "memory": (
        MemoryError(),
        1,
        (
            "error: out of memory (fewer --images-at-once, or a smaller --batch-size, need less):"
            " MemoryError; set"
        ),
    ),
    "GPU memory": (
        OutOfMemoryError("CUDA out of memory."),
        1,
        "error: out of memory (fewer --images-at-once",
    ),
    "unexpected": (
        RuntimeError("a\nb" * 500),
        1,
        "error: clipmerge failed unexpectedly (RuntimeError): a ba b",
    ),
}


@pytest.mark.parametrize("what", ENDINGS)
def test_whatever_is_raised_is_an_error_of_one_line_and_a_code(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error, code, line = ENDINGS[what]
    with pytest.raises(SystemExit) as ended:
        raising(error)()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (code, "")
    assert err.startswith(line)
    assert err.count("\n") == 1
    assert len(err) < 500


@pytest.mark.parametrize("what", ["ours", "system", "unexpected"])
def test_debugging_lets_the_traceback_through(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG, "1")
    error = ENDINGS[what][0]
    with pytest.raises(type(error)) as caught:
        raising(error)()
    assert caught.value is error


def test_an_interruption_between_commands_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise typer.Abort

    monkeypatch.setattr(cli, "app", interrupted)
    outcome = clipmerge("recipes")
    assert (outcome.code, outcome.err) == (130, "error: interrupted; nothing was left behind\n")


def show_everything(terminal: Terminal) -> None:
    terminal.stage("measure")
    terminal.advance(1, 4)
    terminal.advance(4, 4)
    for _ in range(2):
        terminal.say("once [red]only[/red]")
    terminal.result({"name": "é", "templates": ["a"]}, lambda: "for people")
    terminal.show("last line")


@pytest.mark.parametrize("fmt", list(Format))
@pytest.mark.parametrize("is_terminal", [False, True])
def test_each_format_prints_what_it_is_for(
    fmt: Format,
    is_terminal: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    show_everything(Terminal(fmt))
    out, err = capsys.readouterr()
    if fmt is Format.json:
        assert json.loads(out) == {"name": "é", "templates": ["a"]}
        assert err == "note: once [red]only[/red]\n"
    elif fmt is Format.quiet:
        assert (out, err) == ("", "")
    else:
        assert out == "for people\nlast line\n"
        assert err.count("once [red]only[/red]") == 1
        assert ("measuring" in err) is is_terminal


def test_verbose_says_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    show_everything(Terminal(Format.json, verbose=True))
    assert "measuring ...\n" in capsys.readouterr().err


@pytest.mark.parametrize("fmt", [Format.human, Format.json])
def test_off_a_terminal_progress_is_a_line_now_and_then(
    fmt: Format, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]  # seconds
    terminal = Terminal(fmt, clock=lambda: now[0])
    terminal.stage("measure")
    for done in range(1, 41):
        now[0] += 1
        terminal.advance(done, 80)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"measuring: {share}%, {after} s elapsed, {left} left"
        for share, after, left in (
            (12, 10, "1 min 10 s"),
            (25, 20, "1 min 0 s"),
            (38, 30, "50 s"),
            (50, 40, "40 s"),
        )
    ]
    assert LINE_SECONDS == 10


def test_loading_says_nothing_of_the_pace(capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]  # seconds
    terminal = Terminal(Format.human, clock=lambda: now[0])
    terminal.stage("measure")
    for seconds, done in ((25, 1), (5, 2), (6, 4)):
        now[0] += seconds
        terminal.advance(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["measuring: 1%, 25 s elapsed", "measuring: 4%, 36 s elapsed, 5 min 52 s left"]


def test_a_bar_tells_the_times_and_goes_when_it_is_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name in brackets is text in it."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal(Format.human)
    terminal.stage("evaluating [/x] [link=file:///etc]y[/link]")
    terminal.advance(1, 4)
    assert terminal._bar is not None
    terminal.advance(2, 4)
    terminal._bar.refresh()
    terminal.advance(4, 4)
    assert terminal._bar is None
    said = capsys.readouterr().err
    assert "evaluating [/x] [link=file:///etc]y[/link]" in said
    assert "elapsed," in said


def test_the_last_line_is_how_long_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]  # seconds
    terminal = Terminal(Format.human, clock=lambda: now[0])
    now[0] += 83
    terminal.end("Wrote out")
    assert capsys.readouterr().out == "Wrote out\nTook 1 min 23 s.\n"


def test_an_error_takes_the_bar_down_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
