"""Run the benchmark: `python -m benchmarks.shifts.emoji`."""

from benchmarks.shifts.command import run
from benchmarks.shifts.emoji.shift import emoji_shift

raise SystemExit(run("emoji_shift", emoji_shift))
