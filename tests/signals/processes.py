"""Commands as processes: forked or begun anew, stopped at a moment of their processor time, and waited for.

How long a command may take is told by what it does, not by the clock: on a crowded machine it stands still for minutes,
and so does this process. Only one that sleeps for long without using any processor time hangs.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

#: Exit code of a fork whose first statement was not reached.
STARTING = 77
# As the installed command begins, with one byte told as soon as clipmerge's own code is about to.
_FRESH = "import os; os.write(2, b'begun\\n'); from clipmerge.__main__ import run; run()"
# Seconds without any processor time after which a process hangs, and seconds of computing that none needs.
_IDLE, _BUSY = 120.0, 900.0
# Seconds that count between two looks at most: in longer ones this process itself stood still.
_LOOK = 0.1


@dataclass
class Ended:
    """How a command ended: exit code, its lines on stderr, and seconds of processor time."""

    code: int
    lines: list[str]
    seconds: float = 0.0
    sent: bool = True


class Watched:
    """A process of this one's, watched until it ends."""

    def __init__(self, process: int) -> None:
        """Start to watch."""
        self._process = process
        self._status: int | None = None
        self._before = self._last = _used(process)
        self._idle, self._looked = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Processor time that it has used since it was watched first."""
        return self._last - self._before

    @property
    def code(self) -> int:
        """Its exit code, once it is over."""
        assert self._status is not None
        return os.waitstatus_to_exitcode(self._status)

    def over(self) -> bool:
        """Whether it has ended; one that hangs is ended, and says where each of its threads was."""
        if self._status is None:
            found, status = os.waitpid(self._process, os.WNOHANG)
            self._status = status if found else None
            if not found:
                self._look()
        return self._status is not None

    def _look(self) -> None:
        used, now = _used(self._process), time.monotonic()
        passed, self._looked = min(_LOOK, now - self._looked), now
        is_waiting = used <= self._last and _state(self._process) in "SD"
        self._idle = self._idle + passed if is_waiting else 0.0
        self._last = max(self._last, used)
        if self._idle > _IDLE or self.seconds > _BUSY:
            self._end()

    def _end(self) -> None:
        os.kill(self._process, signal.SIGABRT)
        _, self._status = os.waitpid(self._process, 0)

    def stop(self, moment: float | None, number: int) -> bool:
        """Send a signal once the process has used so much processor time."""
        if moment is None:
            return False
        while not self.over():
            if _used(self._process) - self._before >= moment:
                os.kill(self._process, number)
                return True
            time.sleep(0.0005)
        return False

    def wait(self) -> None:
        """Wait for its end."""
        while not self.over():
            time.sleep(0.002)


def _used(process: int) -> float:
    """Processor time of a process so far, in seconds; as Linux numbers a process's clock."""
    try:
        return time.clock_gettime((~process << 3) | 2)
    except OSError:
        return 0.0


def _state(process: int) -> str:
    """The letter that Linux gives the state of a process, such as R for running and S for sleeping."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return "?"


def run_fresh(
    arguments: list[str], home: Path, variables: dict[str, str], moment: float | None = None, number: int = 0
) -> Ended:
    """Run a command in a new interpreter."""
    with (home / "said").open("wb") as said:
        command = [sys.executable, "-X", "faulthandler", "-c", _FRESH, *arguments]
        environment = {**os.environ, **variables, "TMPDIR": str(home / "tmp")}
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment)
    starting = Watched(child.pid)
    while not starting.over() and not (home / "said").stat().st_size:
        time.sleep(0.001)
    watched = starting if starting.over() else Watched(child.pid)
    ended = _ended(watched, home, watched.stop(moment, number))
    child.returncode = ended.code  # waited for here
    return ended


def run_warm(
    arguments: list[str], home: Path, variables: dict[str, str], moment: float | None = None, number: int = 0
) -> Ended:
    """Run a command in a fork of this process, in which libraries are imported already; see `run_fresh`."""
    begun, told = os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_command(arguments, home, variables, told)
    os.close(told)
    os.read(begun, 1)
    os.close(begun)
    watched = Watched(child)
    return _ended(watched, home, watched.stop(moment, number))


def _ended(watched: Watched, home: Path, sent: bool) -> Ended:
    watched.wait()
    lines = (home / "said").read_text(errors="replace").splitlines()
    return Ended(watched.code, lines, watched.seconds, sent)


def _be_the_command(arguments: list[str], home: Path, variables: dict[str, str], told: int) -> None:
    """In a fork: become the command, and end."""
    code: object = 1
    try:
        os.environ.update(variables, TMPDIR=str(home / "tmp"))
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
        code = STARTING
    finally:
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)
