"""One reader fed in a process of its own: ``python -m tests.fuzz.worker TARGET SECONDS SEED MOST NOTES``.

The file being read is put into ``NOTES``, a file that is mapped, so that it is known even after a process that a
library has ended.
"""

from __future__ import annotations

import json
import mmap
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

from tests.support.memory import peak

CORPUS = Path(__file__).parent / "corpus"
#: Seconds of computing that one file may take, and bytes of memory that it may add.
SLOWEST, LARGEST = 5, 1 << 30
#: Bytes of the notes: the number of executions, the length of a file, and the file.
NOTES_SIZE = 16 + (1 << 20)
#: Joiners of scripts and emoji, and wide blanks, which Python does not count as printable.
JOINERS = "\u200c\u200d\xa0\u2002\u2003\u2009\u202f\u3000"
#: Kinds of findings after which a run ends.
MOST_FOUND = 20


class TookTooLong(Exception):
    """A file that took longer than any may."""


def _alarm(_number: int, _frame: FrameType | None) -> None:
    raise TookTooLong


def memory() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def verdict(name: str, data: bytes, folder: Path) -> str:
    """Run one file through a target."""
    from clipmerge.errors import ClipmergeError
    from tests.fuzz.targets import TARGETS

    begin, before = time.process_time(), peak()
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
    from tests.fuzz.targets import seeds

    return [*seeds(name), *(file.read_bytes() for file in sorted((CORPUS / name).glob("*")))]


def fuzz(
    name: str, seconds: float, seed: str, *, most: int, note: Callable[[int, bytes], None], found: Callable[[str], None]
) -> None:
    """Run damaged files through a target for some time, or a number of times."""
    from tests.fuzz.mutation import mutated

    chance, held, kinds = random.Random(f"{name} {seed}"), corpus(name), set[str]()
    with tempfile.TemporaryDirectory() as folder:
        verdict(name, held[0], Path(folder))  # imports take their time once
    signal.signal(signal.SIGPROF, _alarm)
    begin, count = time.monotonic(), 0
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        while count < most and time.monotonic() - begin < seconds and len(kinds) < MOST_FOUND:
            data = mutated(chance.choice(held), held, chance)
            note(count, data)
            signal.setitimer(signal.ITIMER_PROF, 2 * SLOWEST)
            said = verdict(name, data, Path(folder))
            signal.setitimer(signal.ITIMER_PROF, 0)
            count += 1
            if said and said not in kinds:
                kinds.add(said)
                found(said)
            if count % 2000 == 0:
                shutil.rmtree(folder)
                Path(folder).mkdir()
    note(count, b"")


def main() -> None:
    """Fuzz one target; every finding is a line of JSON."""
    name, seconds, seed, most, place = sys.argv[1:]
    warnings.simplefilter("ignore")
    with Path(place).open("r+b") as file:
        notes = mmap.mmap(file.fileno(), NOTES_SIZE)

    def note(count: int, data: bytes) -> None:
        notes[:16] = count.to_bytes(8, "little") + len(data).to_bytes(8, "little")
        notes[16 : 16 + len(data)] = data

    def found(said: str) -> None:
        length = int.from_bytes(notes[8:16], "little")
        sys.stdout.write(json.dumps({"said": said, "data": notes[16 : 16 + length].hex()}) + "\n")
        sys.stdout.flush()

    fuzz(name, float(seconds), seed, most=int(most), note=note, found=found)


if __name__ == "__main__":
    main()
