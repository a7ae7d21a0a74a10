"""`clipmerge env`: its flags, and what it prints."""

from __future__ import annotations

from typing import Any

from clipmerge.cli._ending import reporting_errors
from clipmerge.cli._options import Output
from clipmerge.cli._terminal import Format, Terminal


@reporting_errors
def env_command(fmt: Output = Format.human) -> None:
    """Print versions, devices and settings for a bug report."""
    terminal = Terminal(fmt)
    from clipmerge.api.env import env

    record = env()
    terminal.result(record, lambda: _lines(record))


def _lines(record: dict[str, Any]) -> str:
    """One line per fact."""
    flat = {key: value for key, value in record.items() if not isinstance(value, dict)}
    for name, values in record.items():
        if isinstance(values, dict):
            flat |= {f"{name}: {key}": value for key, value in values.items()}
    width = max(map(len, flat))
    return "\n".join(f"{key:{width}}  {'none' if value is None else value}" for key, value in flat.items())
