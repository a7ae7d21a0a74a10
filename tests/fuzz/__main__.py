"""Fuzz the readers: ``python -m tests.fuzz --minutes 60 [--executions 50000] [--target parquet ...] [--seed 1]``.

Each target gets its share of the time, in a process of its own. What is found is kept in ``tests/fuzz/corpus/TARGET``,
which the tests run again. With atheris installed, ``--coverage`` has it guide the damage by the lines reached.
``--log`` appends a line of JSON for each target to a file; ``--table`` sums such files up.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.worker import CORPUS, NOTES_SIZE, SLOWEST, corpus, memory, verdict

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


def guided(name: str, seconds: float, most: int = 1 << 31) -> tuple[int, dict[str, str]]:
    """Let atheris guide the damage, in a process of its own that ends with the first finding."""
    with tempfile.TemporaryDirectory(dir=memory()) as kept:
        command = [sys.executable, "-c", _GUIDED, name, str(round(seconds)), str(most), kept]
        run = subprocess.run(command, cwd=_ROOT, capture_output=True, check=False)
        said = run.stderr.decode("utf-8", "replace")
        ran = [re.findall(pattern, said) for pattern in (r"number_of_executed_units: (\d+)", r"#(\d+)\s")]
        count = int((ran[0] or ran[1] or ["0"])[-1])
        found = {_keep(name, file.read_bytes()): said[-600:] for file in Path(kept).glob("*")}
        if run.returncode and not found:
            found["nowhere"] = said[-600:]
    return count, found


_GUIDED = "import sys; from tests.fuzz.__main__ import guide; guide(*sys.argv[1:])"


def guide(name: str, seconds: str, most: str, kept: str) -> None:
    """Set atheris up for one target and start it; ends the process."""
    import atheris

    warnings.simplefilter("ignore")
    work = Path(tempfile.mkdtemp(dir=memory()))
    begun = work / "corpus"
    begun.mkdir()
    with atheris.instrument_imports(include=["clipmerge", "tarfile"]):
        for number, data in enumerate(corpus(name)):
            (begun / str(number)).write_bytes(data)
            verdict(name, data, work)  # imports what the target imports

    def once(data: bytes) -> None:
        said = verdict(name, data, work)
        if said:
            raise AssertionError(said)

    limits = [f"-max_total_time={seconds}", f"-runs={most}", f"-timeout={2 * SLOWEST}", "-rss_limit_mb=4096"]
    flags = ["-max_len=65536", "-print_final_stats=1", f"-artifact_prefix={kept}/"]
    atheris.Setup([sys.argv[0], *limits, *flags, str(begun)], once)
    atheris.Fuzz()


def table(logs: list[str]) -> str:
    """Sum the executions in some logs up, as Markdown."""
    damaged, by_coverage = Counter[str](), Counter[str]()
    for log in logs:
        for line in map(json.loads, Path(log).read_text(encoding="utf-8").splitlines()):
            (by_coverage if line["coverage"] else damaged)[line["target"]] += line["executions"]
    rows = ["| reader | damaged at random | guided by coverage |", "|---|---:|---:|"]
    for name in [*sorted(damaged | by_coverage)]:
        rows.append(f"| {name.replace('_', ' ')} | {damaged[name]:,} | {by_coverage[name]:,} |")
    rows.append(f"| all | {damaged.total():,} | {by_coverage.total():,} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Fuzz the targets asked for; 1 if something was found."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together")
    parser.add_argument("--executions", type=int, default=1 << 31, help="at most, for each target")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coverage", action="store_true", help="guided by coverage; needs atheris")
    parser.add_argument("--log", type=Path, help="file that a line for each target is added to")
    parser.add_argument("--table", nargs="+", help="sum up these logs instead")
    asked = parser.parse_args()
    if asked.table:
        sys.stdout.write(table(asked.table))
        return 0
    names = asked.target or list(TARGETS)
    share = asked.minutes * 60 / len(names)
    failed = False
    for name in names:
        if asked.coverage:
            count, found = guided(name, share, asked.executions)
        else:
            count, found = fuzz(name, share, asked.seed, asked.executions)
        failed |= bool(found)
        line = {"target": name, "executions": count, "coverage": asked.coverage, "seed": asked.seed, "found": found}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        if asked.log:
            with asked.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
