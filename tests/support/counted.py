"""Count the lines that a started process runs, if coverage counts those of this one."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def counted() -> dict[str, str]:
    """The environment of a process whose lines are counted as this one's are.

    Not for a process that is interrupted, by a test or by a launcher that stops the others when one fails: coverage
    takes a lock on every call, for which the handler would wait.
    """
    coverage = sys.modules.get("coverage")
    running = coverage.Coverage.current() if coverage else None
    if running is None:
        return dict(os.environ)
    file = str(Path(str(running.get_option("run:data_file"))).resolve())
    return {**os.environ, "COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml"), "COVERAGE_FILE": file}
