"""Run a command, time it and watch its memory; describe the machine."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

_SAMPLE_SECONDS = 0.01


@dataclass(frozen=True)
class Outcome:
    """The time and memory of one process.

    Attributes:
        seconds: Wall-clock time from start to exit.
        cpu_seconds: Processor time of all its threads, in the program and in the system for it.
        private_mb: Highest anonymous memory (RssAnon): everything but pages of mapped files.
        resident_mb: Highest resident memory (VmHWM), mapped file pages included.
    """

    seconds: float
    cpu_seconds: float
    private_mb: float
    resident_mb: float


def run(
    command: list[str], environment: dict[str, str] | None = None, folder: Path | None = None
) -> tuple[Outcome, str]:
    """Run a command to its end."""
    begin, cpu_before = time.perf_counter(), _children_cpu()
    with (
        TemporaryFile("w+") as out,
        TemporaryFile("w+") as err,
    ):  # a pipe nobody reads would fill and stop them
        # an installed program has its bytecode; if it could not be written, every run would compile
        # every module
        variables = os.environ | {"PYTHONDONTWRITEBYTECODE": ""} | (environment or {})
        process = subprocess.Popen(command, stdout=out, stderr=err, env=variables, cwd=folder)
        private = resident = 0.0
        while process.poll() is None:
            status = memory_mb(process.pid)
            private, resident = (
                max(private, status.get("RssAnon", 0)),
                max(resident, status.get("VmHWM", 0)),
            )
            time.sleep(_SAMPLE_SECONDS)
        seconds = time.perf_counter() - begin
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise SystemExit(
                f"{' '.join(command)} failed with {process.returncode}:\n{err.read()[-2000:]}"
            )
        return Outcome(seconds, _children_cpu() - cpu_before, private, resident), out.read()


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def memory_mb(pid: int | str) -> dict[str, float]:
    """``RssAnon`` and the peak ``VmHWM`` of a process (see `Outcome`), in MB; nothing once it has
    ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # it ended between two readings
        return {}
    pairs = (line.split() for line in lines if line.startswith(("RssAnon", "VmHWM")))
    return {pair[0].rstrip(":"): int(pair[1]) / 1e3 for pair in pairs}


def summary(values: list[float]) -> dict[str, Any]:
    """Median, extremes and the values themselves."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": values,
    }


def checkout_environment(checkout: Path | None) -> dict[str, str]:
    """Variables with which ``python -m clipmerge`` runs another checkout's code; none for this
    one's."""
    return {"PYTHONPATH": str(checkout)} if checkout else {}


def checkout_folder(text: str) -> Path:
    """The folder given by ``--against``; commands run there."""
    return Path(text).resolve()


def compare_checkouts(checkout: Path, rounds: int = 3) -> dict[str, Any]:
    """Run the benchmark of this process in both checkouts in turn, and print the ratio of each of
    its figures.

    Each checkout runs its own version of the benchmark, with the arguments of this process.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--against", "--json"):
        parser.add_argument(name)
    arguments = parser.parse_known_args()[1]
    found: dict[Path | None, list[dict[str, float]]] = {None: [], checkout: []}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [
            sys.executable,
            "-m",
            sys.modules["__main__"].__spec__.name,
            *arguments,
            "--json",
            str(file),
        ]
        for number in range(rounds):
            for where in (None, checkout) if number % 2 else (checkout, None):
                run(command, checkout_environment(where), where)
                found[where].append(_figures(json.loads(file.read_text(encoding="utf-8"))))
    ratios = {}
    for name in found[None][0].keys() & found[checkout][0].keys():
        ratios[name] = summary(
            [ours[name] / theirs[name] for ours, theirs in zip(*found.values(), strict=True)]
        )
    for name, ratio in sorted(ratios.items()):
        print(f"{name:50} {ratio['median']:5.2f}  ({ratio['min']:.2f} to {ratio['max']:.2f})")
    return ratios


def _figures(results: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a benchmark's results by name, of summaries the median, without its
    settings."""
    found = {}
    for name, value in results.items():
        if isinstance(value, dict) and "median" in value:
            found[prefix + name] = value["median"]
        elif isinstance(value, dict) and name not in ("settings", "machine"):
            found |= _figures(value, f"{prefix}{name}: ")
        elif isinstance(value, float | int) and value:
            found[prefix + name] = value
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, memory, Python and the packages that matter."""
    cpu = [
        line
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if "model name" in line
    ]
    packages = ("torch", "safetensors", "numpy", "transformers")
    return {
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def peer_version(interpreter: str, package: str) -> str:
    """Version of a package in another interpreter's environment."""
    command = [
        interpreter,
        "-c",
        f"from importlib.metadata import version; print(version({package!r}))",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def write_results(path: Path | None, results: dict[str, Any]) -> None:
    """Write results as JSON with the command and the machine, if a file was asked for."""
    if path:
        record = {
            "command": " ".join(Path(word).name for word in sys.argv),
            "machine": machine(),
            **results,
        }
        path.write_text(json.dumps(record, indent=2, default=asdict) + "\n", encoding="utf-8")
