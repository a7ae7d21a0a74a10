"""Write docs/research/results.md from the JSON files: `python -m benchmarks.shifts`."""

from benchmarks.shifts.report import write_page

for written in write_page():
    print(written)
