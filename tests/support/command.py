"""Run the command line: in this process, where imports are paid once, or in a new one."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from clipmerge.cli.app import main

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def clipmerge(*arguments: object) -> Outcome:
    """Run ``clipmerge ARGUMENTS`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["clipmerge", *map(str, arguments)]
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        patch.object(sys, "argv", argv),
    ):
        code = main()
    return Outcome(code, out.getvalue(), err.getvalue())


def done(*arguments: object) -> Outcome:
    """Run a command that must succeed."""
    outcome = clipmerge(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def printed(*arguments: object) -> Any:
    """Run a command that must succeed, and return the record that it prints."""
    return done(*arguments, "--json").json


def coverage_environment() -> dict[str, str]:
    """The environment of a new process whose lines coverage counts too, if it counts this one's.

    Not for a process that receives signals: coverage takes a lock on every call, and a signal
    handler would wait for it.
    """
    coverage = sys.modules.get("coverage")
    running = coverage.Coverage.current() if coverage else None
    if running is None:
        return dict(os.environ)
    file = str(Path(str(running.get_option("run:data_file"))).resolve())
    return {
        **os.environ,
        "COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml"),
        "COVERAGE_FILE": file,
    }


def python(
    *words: object, env: Mapping[str, str] = os.environ, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run Python to its end in a new process, whose output is captured."""
    settings = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "check": False,
        "timeout": 900,
        **options,
    }
    return subprocess.run([sys.executable, *map(str, words)], text=True, env=env, **settings)


def several(count: int, module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE ARGUMENTS`` to its end in several processes, as users do."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count)
    return python(*launcher, "-m", module, *arguments, cwd=ROOT, env=coverage_environment())


def start(*arguments: object, module: str = "clipmerge", **options: Any) -> subprocess.Popen[str]:
    """Start ``python -m MODULE ARGUMENTS`` in a new process."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, **options.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=ROOT, **pipes, **options)


def refused(outcome: Outcome, code: int = 1) -> str:
    """Check that a command failed with one line, and return the line."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    # a busy machine takes long enough for lines of progress
    lines = [
        line
        for line in outcome.err.splitlines()
        if not line.startswith("note: ") and " elapsed" not in line
    ]
    assert len(lines) == 1, outcome.err
    if lines[0].startswith("{"):  # the format is JSON
        lines[0] = f"error: {json.loads(lines[0])['error']}"
    assert lines[0].startswith("error: ")
    assert "Traceback" not in outcome.err
    assert "unexpectedly" not in outcome.err
    return lines[0]


@contextlib.contextmanager
def one_line(error: type[Exception], match: str) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Check that an error is raised, and that its message is one line."""
    with pytest.raises(error, match=match) as caught:
        yield caught
    assert "\n" not in str(caught.value)
