"""Fuzz the readers: ``python -m tests.fuzz --minutes 60 [--target parquet ...] [--seed 1]``.

Each target gets its share of the time. What is found is kept in ``tests/fuzz/corpus/TARGET``, which the tests run
again, and printed with how to repeat it. With atheris installed, ``--coverage`` has it guide the damage by the lines
reached; it takes one target.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import FrameType

CORPUS = Path(__file__).parent / "corpus"
#: Seconds of computing that one file may take, and bytes of memory that it may add.
SLOWEST, LARGEST = 5, 1 << 30


class TookTooLong(Exception):
    """A file that took longer than any may."""


def _alarm(_number: int, _frame: FrameType | None) -> None:
    raise TookTooLong


def verdict(name: str, data: bytes, folder: Path) -> str:
    """Run one file through a target.

    Returns:
        Empty where it was read, or refused in one line; else what happened.
    """
    from clipmerge.errors import ClipmergeError
    from tests.fuzz.targets import TARGETS

    begin = time.process_time()
    try:
        TARGETS[name](data, folder)
    except ClipmergeError as error:
        text = str(error)
        if "\n" in text or not text.isprintable():
            return f"an error that is not one printable line: {text!r}"
    except TookTooLong:
        return f"took over {SLOWEST} s"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    took = time.process_time() - begin
    return f"took {took:.0f} s" if took > SLOWEST else ""


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def corpus(name: str) -> list[bytes]:
    """The valid files of a target, and what was found with it."""
    from tests.fuzz.targets import seeds

    return [*seeds(name), *(file.read_bytes() for file in sorted((CORPUS / name).glob("*")))]


def fuzz(name: str, seconds: float, seed: int, *, most: int = 1 << 62) -> tuple[int, dict[str, str]]:
    """Run damaged files through a target for some time, or a number of times.

    Returns:
        Executions, and what was found by the file that it was kept in.
    """
    from tests.fuzz.mutation import mutated

    chance, held, found, count = random.Random(f"{name} {seed}"), corpus(name), dict[str, str](), 0
    with tempfile.TemporaryDirectory() as folder:
        verdict(name, held[0], Path(folder))  # imports take their time once
    signal.signal(signal.SIGPROF, _alarm)
    peak = _peak()
    begin = time.monotonic()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        while count < most and time.monotonic() - begin < seconds:
            data = mutated(chance.choice(held), held, chance)
            signal.setitimer(signal.ITIMER_PROF, 2 * SLOWEST)
            said = verdict(name, data, Path(folder))
            signal.setitimer(signal.ITIMER_PROF, 0)
            count += 1
            if said and said not in found.values():
                place = CORPUS / name / hashlib.sha256(data).hexdigest()[:16]
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
                found[str(place)] = said
            if count % 100 == 0 and _peak() - peak > LARGEST:  # asking the system each time takes longer than reading
                found[f"one of the last 100 before execution {count}, seed {seed}"] = "took too much memory"
                break
            if count % 2000 == 0:
                shutil.rmtree(folder)
                Path(folder).mkdir()
    return count, found


def guided(name: str, seconds: float) -> None:
    """Let atheris guide the damage; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["clipmerge", "tarfile"]):
        from tests.fuzz.targets import TARGETS

        with tempfile.TemporaryDirectory() as folder:
            verdict(name, b"", Path(folder))  # imports what the target imports
    assert name in TARGETS
    work = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    begun = work / "corpus"
    begun.mkdir()
    for number, data in enumerate(corpus(name)):
        (begun / str(number)).write_bytes(data)

    def once(data: bytes) -> None:
        said = verdict(name, data, work)
        if said:
            raise AssertionError(said)

    flags = [f"-max_total_time={round(seconds)}", f"-timeout={2 * SLOWEST}", "-rss_limit_mb=4096", "-max_len=65536"]
    atheris.Setup([sys.argv[0], *flags, "-print_final_stats=1", f"-artifact_prefix={CORPUS / name}-", str(begun)], once)
    atheris.Fuzz()


def main() -> int:
    """Fuzz the targets asked for; 1 if something was found."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coverage", action="store_true", help="guided by coverage; needs atheris")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    names = asked.target or list(TARGETS)
    share = asked.minutes * 60 / len(names)
    if asked.coverage:
        guided(names[0], share)
    failed = False
    for name in names:
        count, found = fuzz(name, share, asked.seed)
        failed |= bool(found)
        sys.stdout.write(json.dumps({"target": name, "executions": count, "found": found}) + "\n")
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
