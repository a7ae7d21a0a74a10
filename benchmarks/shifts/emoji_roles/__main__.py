"""Run the benchmark: `python -m benchmarks.shifts.emoji_roles`."""

from benchmarks.shifts.command import run
from benchmarks.shifts.emoji_roles.shift import ABOUT, emoji_roles

raise SystemExit(run(ABOUT, emoji_roles))
