"""Run the benchmark: `python -m benchmarks.shifts.fashion`."""

from benchmarks.shifts.command import run
from benchmarks.shifts.fashion.shift import ABOUT, fashion_shift

raise SystemExit(run(ABOUT, fashion_shift))
