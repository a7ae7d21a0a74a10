"""Measure every bomb: ``python -m tests.bombs [NAME ...]`` prints a table in Markdown; ``--json`` for programs.

Each is made and read in forks of one process, in which libraries are imported already, so that memory above the start
and processor time are those of the reading alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from clipmerge.errors import ClipmergeError
from tests.bombs.files import BOMBS, Bomb
from tests.fuzz.__main__ import verdict
from tests.fuzz.targets import TARGETS, seeds
from tests.support.memory import peak

# Seconds of processor time after which a bomb has done its harm.
_GIVEN_UP = 30


def _apart(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do something in a fork; what it returns, or how it ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(writing, json.dumps(work()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return json.loads(text) if text else {"wrong": f"the process ended with {ended}"}


def measure(bomb: Bomb, folder: Path) -> dict[str, Any]:
    """Make a bomb and read it."""
    path = folder / bomb.name
    _apart(lambda: {"made": bomb.make(path)})
    size = path.stat().st_size
    found = _apart(lambda: _read(bomb, path, folder))
    path.unlink(missing_ok=True)
    return {"size": size, **found}


def _read(bomb: Bomb, path: Path, folder: Path) -> dict[str, Any]:
    data = path.read_bytes()
    path.unlink()  # the reader writes it once more
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, _GIVEN_UP)
    memory, begin = peak(), time.process_time()
    said, wrong = "", ""
    try:
        TARGETS[bomb.reader](data, folder)
    except ClipmergeError as error:
        said = str(error).replace(str(folder), "")
        wrong = "" if "\n" not in said else "several lines"
    except BaseException as error:
        wrong = f"{type(error).__name__}: {error}"[:300]
    return {"seconds": time.process_time() - begin, "memory": peak() - memory, "said": said[:300], "wrong": wrong}


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"given up after {_GIVEN_UP} s")


def measure_all(names: list[str]) -> dict[str, dict[str, Any]]:
    """Measure bombs by name."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for reader in {BOMBS[each].reader for each in names}:  # imports what it imports
            for data in seeds(reader):
                verdict(reader, data, folder)
        return {each: measure(BOMBS[each], folder) for each in names}


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(prog="python -m tests.bombs", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BOMBS, []], help="some of the bombs; all by default")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    measured = measure_all(asked.names or list(BOMBS))
    if asked.json:
        sys.stdout.write(json.dumps(measured))
        return
    sys.stdout.write("| file | size | seconds | MiB above start | line |\n|---|---:|---:|---:|---|\n")
    for name, found in measured.items():
        said = (found.get("said") or found.get("wrong") or "is read").replace("|", "\\|")
        memory = found.get("memory", 0) / (1 << 20)
        row = f"| {name} | {found['size']:,} | {found.get('seconds', 0):.1f} | {memory:.0f} | {said[:110]} |\n"
        sys.stdout.write(row)


if __name__ == "__main__":
    main()
