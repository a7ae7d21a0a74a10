"""Run the benchmark: `python -m benchmarks.emoji_shift`."""

from benchmarks.emoji_shift.shift import emoji_shift
from benchmarks.shifts.command import run

raise SystemExit(run("emoji_shift", emoji_shift))
