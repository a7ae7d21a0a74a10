"""Fuzz the readers: ``python -m tests.fuzz --minutes 60 [--executions 50000] [--target parquet ...] [--seed 1]``.

Each target gets its share of the time, in a fork of a process in which libraries are imported already, so that what is
tried takes no more memory than it may and ends no other target. What is found is kept in ``tests/fuzz/corpus/TARGET``,
which the tests run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from clipmerge.errors import ClipmergeError
from tests.fuzz.mutation import mutated
from tests.fuzz.targets import SLOW, TARGETS, seeds
from tests.support.memory import peak

CORPUS = Path(__file__).parent / "corpus"
#: Seconds of computing that one file may take, and bytes of memory that it may add.
SLOWEST, LARGEST = 5, 1 << 30
#: Joiners of scripts and emoji, and wide blanks, which Python does not count as printable.
JOINERS = "\u200c\u200d\xa0\u2002\u2003\u2009\u202f\u3000"
#: Kinds of findings after which a target ends.
MOST_FOUND = 20


class TookTooLong(Exception):
    """A file that took longer than any may."""


def _alarm(_number: int, _frame: FrameType | None) -> None:
    raise TookTooLong


def verdict(name: str, data: bytes, folder: Path) -> str:
    """Run one file through a target."""
    begin, before = time.process_time(), peak()
    signal.signal(signal.SIGPROF, _alarm)
    signal.setitimer(signal.ITIMER_PROF, 2 * SLOWEST)
    try:
        TARGETS[name](data, folder)
    except ClipmergeError as error:
        text = str(error)
        if not all(letter.isprintable() or letter in JOINERS for letter in text):
            return f"not one printable line, {_place(error)}"
    except TookTooLong:
        return f"took over {SLOWEST} s"
    except Exception as error:
        return f"{type(error).__name__}, {_place(error)}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    took, grown = time.process_time() - begin, peak() - before
    if grown > LARGEST:
        return f"took {grown >> 20} MiB more"
    return f"took {took:.0f} s" if took > SLOWEST else ""


def _place(error: Exception) -> str:
    """The last line of clipmerge that an error went through; equal for equal faults."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/clipmerge/" in frame.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].name}"


def corpus(name: str) -> list[bytes]:
    """The valid files of a target, and what was found with it."""
    return [*seeds(name), *(file.read_bytes() for file in sorted((CORPUS / name).glob("*")))]


def fuzz(name: str, seconds: float, seed: int, most: int) -> tuple[int, dict[str, str]]:
    """Run files that were found and damaged ones through a target, in a fork; what was found, by kind.

    The number of executions and the file being read are in shared memory, so that they are known even after a fork that
    a library has ended.
    """
    notes = mmap.mmap(-1, 16 + (1 << 20))
    found = apart(lambda: _fuzzed(name, seconds, random.Random(f"{name} {seed}"), most, notes))
    count, size = (int.from_bytes(notes[at : at + 8], "little") for at in (0, 8))
    return count, found if isinstance(found, dict) else {found: _keep(name, notes[16 : 16 + size])}


def apart(work: Callable[[], Any]) -> Any:
    """Do something in a fork; what it returns, or how it ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        with os.fdopen(writing, "w") as told:
            json.dump(work(), told)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        text = told.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else f"ends the process ({os.waitstatus_to_exitcode(status)})"


def _fuzzed(name: str, seconds: float, chance: random.Random, most: int, notes: mmap.mmap) -> dict[str, str]:
    known, found = corpus(name), dict[str, str]()
    begin, count = time.monotonic(), 0
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        while count < most and time.monotonic() - begin < seconds and len(found) < MOST_FOUND:
            data = known[count] if count < len(known) else mutated(chance.choice(known), known, chance)
            notes[: 16 + len(data)] = count.to_bytes(8, "little") + len(data).to_bytes(8, "little") + data
            said = verdict(name, data, Path(folder))
            count += 1
            if said and said not in found:
                found[said] = _keep(name, data)
            if count % 2000 == 0:
                shutil.rmtree(folder)
                Path(folder).mkdir()
    notes[:8] = count.to_bytes(8, "little")
    return found


def _keep(name: str, data: bytes) -> str:
    place = CORPUS / name / hashlib.sha256(data).hexdigest()[:16]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    return str(place)


def main() -> int:
    """Fuzz the targets asked for; 1 if something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together")
    parser.add_argument(
        "--executions", type=int, default=1 << 31, help="at most, for each target; a tenth for slow ones"
    )
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    names = asked.target or list(TARGETS)
    failed = False
    warnings.simplefilter("ignore")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            for data in seeds(name):
                verdict(name, data, Path(folder))  # imports what it needs
        most = asked.executions // (10 if name in SLOW else 1)
        count, found = fuzz(name, asked.minutes * 60 / len(names), asked.seed, most)
        failed |= bool(found)
        line = {"target": name, "executions": count, "seed": asked.seed, "found": found}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
