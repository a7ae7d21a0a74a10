"""`clipmerge apply`: flags and output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from clipmerge.cli._options import command, output_flag
from clipmerge.cli._terminal import Terminal, show_merge
from clipmerge.config import ApplyOptions


@command(ApplyOptions)
def apply_command(
    terminal: Terminal,
    plan_file: Annotated[
        Path, typer.Argument(metavar="PLAN", help="JSON file written by plan; may be edited.")
    ],
    output: Annotated[Path, output_flag("Folder to write.")],
    **options: Unpack[ApplyOptions],
) -> None:
    """Apply a plan: writes the same bytes as merge."""
    from clipmerge.api.apply import apply

    result = apply(plan_file, output=output, **options)
    show_merge(terminal, result.record, f"Wrote {output} (report: {output / 'report.html'})")
