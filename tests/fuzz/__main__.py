"""Fuzz the readers: ``python -m tests.fuzz --minutes 60 [--executions 50000] [--target parquet ...] [--seed 1]``.

Each target gets its share of the time, in a process of its own. What is found is kept in ``tests/fuzz/corpus/TARGET``,
which the tests run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.worker import CORPUS, NOTES_SIZE, memory

_ROOT = Path(__file__).parents[2]


def fuzz(
    name: str, seconds: float, seed: int, most: int = 1 << 62, worker: Sequence[str] = ("-m", "tests.fuzz.worker")
) -> tuple[int, dict[str, str]]:
    """Run damaged files through a target for some time, or a number of times.

    A process that a file ends is a finding; another goes on from there.
    """
    found: dict[str, str] = {}
    count, attempt, end = 0, 0, time.monotonic() + seconds
    with tempfile.NamedTemporaryFile(dir=memory()) as notes:
        while count < most and time.monotonic() < end and attempt < 20:
            notes.truncate(0)
            notes.truncate(NOTES_SIZE)
            left = [str(end - time.monotonic()), f"{seed}.{attempt}", str(most - count), notes.name]
            command = [sys.executable, *worker, name, *left]
            run = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
            attempt += 1
            content = Path(notes.name).read_bytes()
            count += int.from_bytes(content[:8], "little")
            for line in run.stdout.splitlines():
                kind = json.loads(line)
                found.setdefault(kind["said"], _keep(name, bytes.fromhex(kind["data"])))
            if run.returncode == 0:
                break
            size = int.from_bytes(content[8:16], "little")
            said = f"ends the process ({run.returncode}): {run.stderr.strip()[-300:]}"
            found.setdefault(said, _keep(name, content[16 : 16 + size]))
            count += 1
    return count, {place: said for said, place in found.items()}


def _keep(name: str, data: bytes) -> str:
    place = CORPUS / name / hashlib.sha256(data).hexdigest()[:16]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    return str(place)


def main() -> int:
    """Fuzz the targets asked for; 1 if something was found."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together")
    parser.add_argument("--executions", type=int, default=1 << 31, help="at most, for each target")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    names = asked.target or list(TARGETS)
    share = asked.minutes * 60 / len(names)
    failed = False
    for name in names:
        count, found = fuzz(name, share, asked.seed, asked.executions)
        failed |= bool(found)
        line = {"target": name, "executions": count, "seed": asked.seed, "found": found}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
