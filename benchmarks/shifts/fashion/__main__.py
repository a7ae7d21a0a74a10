"""Run the benchmark: `python -m benchmarks.shifts.fashion`."""

from benchmarks.shifts.command import run
from benchmarks.shifts.fashion.shift import fashion_shift

raise SystemExit(run("fashion_shift", fashion_shift))
