"""Run the benchmark: `python -m benchmarks.shifts.fonts`."""

from benchmarks.shifts.command import run
from benchmarks.shifts.fonts.shift import ABOUT, fonts

raise SystemExit(run(ABOUT, fonts))
