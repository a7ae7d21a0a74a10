"""`clipmerge env`: its flags, and what it prints."""

from __future__ import annotations

from typing import Any

from clipmerge.cli._defaults import read_defaults
from clipmerge.cli._options import command
from clipmerge.cli._terminal import Terminal
from clipmerge.errors import UsageError


@command(verbose=False)
def env_command(terminal: Terminal) -> None:
    """Print versions, devices and settings for a bug report."""
    from clipmerge.api.env import env

    record = env() | {"defaults": _defaults()}
    terminal.result("env", record, lambda: _lines(record))


def _defaults() -> dict[str, str]:
    """The defaults of flags set by files and variables here, or the error in them."""
    try:
        found = read_defaults()
    except UsageError as error:
        return {"unusable": str(error)}
    return {f"--{name.replace('_', '-')}": f"{value} ({found.origins[name]})" for name, value in found.values.items()}


def _lines(record: dict[str, Any]) -> str:
    """One line per fact."""
    flat = {key: value for key, value in record.items() if not isinstance(value, dict)}
    for name, values in record.items():
        if isinstance(values, dict):
            flat |= {f"{name}: {key}": value for key, value in values.items()}
    width = max(map(len, flat))
    return "\n".join(f"{key:{width}}  {'none' if value is None else value}" for key, value in flat.items())
