"""Run a command, time it and watch its memory; describe the machine."""

from __future__ import annotations

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
from tempfile import TemporaryFile
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
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:  # a pipe nobody reads would fill and stop them
        # an installed program has its bytecode; if it could not be written, every run would compile every module
        variables = os.environ | {"PYTHONDONTWRITEBYTECODE": ""} | (environment or {})
        process = subprocess.Popen(command, stdout=out, stderr=err, env=variables, cwd=folder)
        private = resident = 0.0
        while process.poll() is None:
            status = memory_mb(process.pid)
            private, resident = max(private, status.get("RssAnon", 0)), max(resident, status.get("VmHWM", 0))
            time.sleep(_SAMPLE_SECONDS)
        seconds = time.perf_counter() - begin
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed with {process.returncode}:\n{err.read()[-2000:]}")
        return Outcome(seconds, _children_cpu() - cpu_before, private, resident), out.read()


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def memory_mb(pid: int | str) -> dict[str, float]:
    """``RssAnon`` and the peak ``VmHWM`` of a process (see `Outcome`), in MB; nothing once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # it ended between two readings
        return {}
    pairs = (line.split() for line in lines if line.startswith(("RssAnon", "VmHWM")))
    return {pair[0].rstrip(":"): int(pair[1]) / 1e3 for pair in pairs}


def summary(values: list[float]) -> dict[str, Any]:
    """Median, extremes and the values themselves."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": values}


def checkout_environment(checkout: Path | None) -> dict[str, str]:
    """Variables with which ``python -m clipmerge`` runs another checkout's code; none for this one's."""
    return {"PYTHONPATH": str(checkout)} if checkout else {}


def machine() -> dict[str, Any]:
    """Processor, cores, memory, Python and the packages that matter."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in line]
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
    command = [interpreter, "-c", f"from importlib.metadata import version; print(version({package!r}))"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def write_results(path: Path | None, results: dict[str, Any]) -> None:
    """Write results as JSON with the command and the machine, if a file was asked for."""
    if path:
        record = {"command": " ".join(Path(word).name for word in sys.argv), "machine": machine(), **results}
        path.write_text(json.dumps(record, indent=2, default=asdict) + "\n", encoding="utf-8")
