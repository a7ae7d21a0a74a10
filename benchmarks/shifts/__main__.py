"""Write docs/research/results.md from the JSON files: `python -m benchmarks.shifts`."""

from benchmarks import plugins
from benchmarks.shifts.report import write_page

plugins.use()
plugins.use()

for written in write_page():
    print(written)
