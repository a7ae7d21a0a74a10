"""Run the benchmark: `python -m benchmarks.shifts.emoji`."""

from benchmarks.shifts.command import run
from benchmarks.shifts.emoji.shift import ABOUT, emoji_shift

raise SystemExit(run(ABOUT, emoji_shift))
