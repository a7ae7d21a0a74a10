"""One command, stopped at a random moment of the time that it takes, and how it may have ended."""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import random
import re
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
# Of a finished command, these hold times.
_TIMED = ("clipmerge.json", "sweep.json", "conversion.json")
# Lines on stderr that say how a command gets on.
_PROGRESS = re.compile(r"note: |[\w: -]+: \d+%, .* elapsed")


# Exit code of a fork whose first statement was not reached.
_STARTING = 77
# Seconds after which a command hangs; it is then ended, and says where each of its threads was.
_HANGS = 600.0


@dataclass
class Ended:
    """How a command ended: exit code, its lines on stderr, seconds, and whether a signal was sent."""

    code: int
    lines: list[str]
    seconds: float = 0.0
    sent: bool = True


def run(arguments: list[str], home: Path, moment: float = _HANGS, number: int = signal.SIGABRT) -> Ended:
    """Run a command in a fork of this process, in which libraries are imported, and send it a signal at a moment."""
    begun, told = os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_command(arguments, home, told)
    os.close(told)
    os.read(begun, 1)
    os.close(begun)
    begin, sent, ended = time.monotonic(), False, (0, 0)
    while not ended[0]:
        passed = time.monotonic() - begin
        if passed >= (_HANGS if sent else moment):
            os.kill(child, signal.SIGABRT if sent else number)
            sent = True
        time.sleep(0.0005)
        ended = os.waitpid(child, os.WNOHANG)
    lines = (home / "said").read_text(errors="replace").splitlines()
    return Ended(os.waitstatus_to_exitcode(ended[1]), lines, time.monotonic() - begin, sent)


def _be_the_command(arguments: list[str], home: Path, told: int) -> None:
    """In a fork: become the command, and end."""
    code: object = 1
    try:
        os.environ["TMPDIR"] = str(home / "tmp")
        for stream, place in ((1, os.devnull), (2, str(home / "said"))):
            os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT, 0o600), stream)
        faulthandler.enable(2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.argv = ["clipmerge", *arguments]
        from clipmerge.__main__ import run
        from clipmerge.cli._early import standing

        standing.clear()  # of commands that this process ran before it was forked
        os.write(told, b".")
        run()
        code = 0
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = _STARTING
    finally:
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


@dataclass(frozen=True)
class Command:
    """A command to be stopped.

    Attributes:
        name: What it is called in the table.
        arguments: What stands behind ``clipmerge``; a path that begins with ``OUT`` is in the trial's own folder.
        earlier: Arguments of a command whose output stands in the place of this one's, which replaces it.
    """

    name: str
    arguments: tuple[str, ...]
    earlier: tuple[str, ...] = ()


@dataclass
class Trials:
    """Runs commands beside one another's outputs.

    Attributes:
        folder: Holds a folder for every trial.
        whole: Contents of a whole output, by command and by whether it is the earlier one.
        seconds: Time of a whole run, by command.
    """

    folder: Path
    whole: dict[tuple[str, bool], dict[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    number: int = 0

    def _prepare(self, command: Command) -> None:
        """Run a command to its end, for what a whole output holds and how long it takes."""
        home = self._home()
        if command.earlier:
            self._checked(run(self._filled(command.earlier, home), home))
            self.whole[command.name, True] = contents(home / "out")
        ended = self._checked(run(self._filled(command.arguments, home), home))
        self.seconds[command.name] = ended.seconds
        self.whole[command.name, False] = contents(home / "out")

    def _checked(self, ended: Ended) -> Ended:
        if ended.code:
            raise RuntimeError(f"a command that was not stopped ended with {ended.code}: {ended.lines}")
        return ended

    def _home(self) -> Path:
        self.number += 1
        home = self.folder / str(self.number)
        (home / "tmp").mkdir(parents=True)
        return home

    def _filled(self, arguments: tuple[str, ...], home: Path) -> list[str]:
        return [text.replace("OUT", str(home / "out")) for text in arguments]

    def stop(self, command: Command, number: int, chance: random.Random) -> tuple[str, str]:
        """Run a command and stop it at a random moment."""
        if command.name not in self.seconds:
            self._prepare(command)
        home = self._home()
        if command.earlier:
            self._checked(run(self._filled(command.earlier, home), home))
        moment = chance.uniform(0, self.seconds[command.name])
        ended = run(self._filled(command.arguments, home), home, moment, number)
        if not ended.sent or ended.code == 0:
            return "too late", "" if ended.code == 0 else f"exit {ended.code}: {ended.lines}"
        if ended.code in (_STARTING, -signal.SIGTERM) and not ended.lines:
            return "starting", ""
        state, wrong = self._state(command, home)
        said = wrong or _wrong_with(ended, number, state)
        return state, f"{said} ({ended.code}, {ended.lines})" if said else ""

    def _state(self, command: Command, home: Path) -> tuple[str, str]:
        there = sorted(path.name for path in home.iterdir() if path.name not in ("tmp", "said"))
        left = sorted(path.name for path in (home / "tmp").iterdir())
        if left or there not in ([], ["out"]):
            return "half", f"left behind: {there} {left}"
        if not there:
            return "before", "the earlier output is gone" if command.earlier else ""
        found = contents(home / "out")
        if found == self.whole.get((command.name, True)):
            return "before", ""
        return "after", "" if found == self.whole[command.name, False] else f"not whole: {sorted(found)}"


def _wrong_with(ended: Ended, number: int, state: str) -> str:
    errors = [line for line in ended.lines if not _PROGRESS.match(line)]
    if ended.code != _CODES[signal.Signals(number)]:
        return "another exit code"
    if len(errors) != 1 or not errors[0].startswith("error: "):
        return "not one line"
    # where learning was saved, the line does not say that nothing is left
    nothing = any(told in errors[0] for told in ("nothing was left behind", "no output was written"))
    known = "is not known" not in errors[0]
    return f"the line is not true, since it ended {state} it" if known and nothing != (state == "before") else ""


def contents(folder: Path) -> dict[str, str]:
    """Hashes of a folder's files by name; of records, which hold times, what they hold is replaced by their keys."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name in _TIMED:
                data = " ".join(json.loads(data)).encode()
            elif path.suffix in (".html", ".md", ".png"):
                data = b"written" if data else b""
            found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found
