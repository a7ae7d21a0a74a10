"""Write docs/research/results.md and README's table from the JSON files:
`python -m benchmarks.shifts`."""

from benchmarks import plugins
from benchmarks.shifts.report import write_page, write_readme

plugins.use()

for written in (*write_page(), *write_readme()):
    print(written)
