"""Run the command line in this process."""

from __future__ import annotations

import typer
from typer.testing import CliRunner


def invoke(app: typer.Typer, arguments: list[str]) -> tuple[int, str, str]:
    """Run a command; returns exit code, stdout and stderr."""
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr
