"""Run the benchmark: `python -m benchmarks.fashion_shift`."""

from benchmarks.fashion_shift.shift import fashion_shift
from benchmarks.shifts.command import run

raise SystemExit(run("fashion_shift", fashion_shift))
