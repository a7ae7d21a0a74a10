"""What a command meets around it: a reader that has gone, a folder that has gone, a terminal, a launcher."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from rich.text import Text

from clipmerge.cli import _early
from clipmerge.cli._ending import Unprintable, printing, reporting_errors
from clipmerge.cli._help import complete_recipe
from clipmerge.cli._terminal import Format, Terminal
from tests.support.command import clipmerge
from tests.support.counted import counted


def test_a_reader_that_has_gone_ends_a_command_quietly() -> None:
    """As `clipmerge recipes show auto | head -1` does."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "clipmerge", "recipes", "show", "auto"]
    ended = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, text=True, env=counted(), check=False, timeout=120
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_working_folder_that_has_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @reporting_errors
    def command() -> None:
        raise FileNotFoundError(2, "No such file or directory")

    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit):
        command()
    line = "error: the working folder is gone or cannot be read (No such file or directory); go to another one"
    assert capsys.readouterr().err.startswith(line)


def test_a_process_that_its_launcher_ends_says_nothing() -> None:
    """Another process of the run has failed and said why."""
    code = (
        "import signal\n"
        "from clipmerge.cli._ending import reporting_errors\n"
        f"reporting_errors(lambda: signal.raise_signal({signal.SIGTERM:d}))()"
    )
    command = [sys.executable, "-c", code]
    ended = [
        subprocess.run(
            command, env={**counted(), "RANK": rank}, capture_output=True, text=True, check=False, timeout=120
        )
        for rank in ("1", "0")
    ]
    assert [each.returncode for each in ended] == [143, 143]
    assert ended[0].stderr == ""
    assert ended[1].stderr.startswith("error: ended from outside")


def test_a_terminal_gets_paragraphs_of_its_width_and_commands_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Elsewhere a paragraph is one line, for other programs; markup is text everywhere."""
    monkeypatch.setenv("COLUMNS", "40")
    command, paragraph = "clipmerge merge [b]a[/b] " * 5, "word " * 20
    Terminal(Format.human).show(command, Text(paragraph))
    assert capsys.readouterr().out.splitlines() == [command.rstrip(), paragraph.rstrip()]
    monkeypatch.setenv("FORCE_COLOR", "1")
    Terminal(Format.human).show(command, Text(paragraph))
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == command
    assert len(rest) == 3
    assert max(map(len, rest)) <= 40


def test_other_processes_print_nothing(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher starts several; the main one speaks and writes."""
    plan = tmp_path / "plan.json"
    assert clipmerge("plan", *pair, "-r", "wise-ft", "-o", plan).code == 0
    monkeypatch.setenv("RANK", "1")
    for command in (
        ("plan", *pair, "-r", "wise-ft", "-o", tmp_path / "other.json"),
        ("apply", plan, "-o", tmp_path / "applied"),
        ("merge", *pair, "-r", "wise-ft", "-o", tmp_path / "merged"),
        ("merge", *pair, "-r", "wise-ft", "--dry-run"),
    ):
        outcome = clipmerge(*command)
        assert (outcome.code, outcome.out, outcome.err) == (0, "", ""), command
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("folder", ["a" * 300 + "/", "no such folder/"])
def test_completion_of_a_path_that_cannot_be_is_empty(folder: str) -> None:
    assert complete_recipe(folder) == []


@pytest.mark.parametrize(
    ("failing", "told"),
    [(BrokenPipeError(errno.EPIPE, "Broken pipe"), BrokenPipeError), (OSError(errno.ENOSPC, "Full"), Unprintable)],
)
def test_a_reader_that_has_gone_is_no_fault_of_standard_output(
    failing: OSError, told: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is one."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "flush", Mock(side_effect=failing))
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(told), printing():
        stream.write("a line")


@pytest.mark.parametrize(("rank", "line"), [("0", "error: interrupted; nothing was left behind\n"), ("1", "")])
def test_of_several_processes_the_main_one_tells_of_a_signal(
    rank: str, line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(_early, "standing", [])
    monkeypatch.setenv("RANK", rank)
    _early.end_at_once(signal.SIGINT, None)
    assert codes == [130]
    assert capfd.readouterr() == ("", line)
