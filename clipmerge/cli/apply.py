"""`clipmerge apply`: flags and output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from clipmerge.cli._ending import reporting_errors
from clipmerge.cli._options import Output, Verbose, command_line, output_flag, takes_options
from clipmerge.cli._summary import show_merge
from clipmerge.cli._terminal import Format, Terminal
from clipmerge.options import ApplyOptions


@reporting_errors
@takes_options(ApplyOptions)
def apply_command(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="JSON file written by plan; may be edited.")],
    output: Annotated[Path, output_flag("Folder to write.")],
    fmt: Output = Format.human,
    verbose: Verbose = False,
    **options: Unpack[ApplyOptions],
) -> None:
    """Apply a plan: writes the same bytes as merge."""
    terminal = Terminal(fmt, verbose=verbose)
    from clipmerge.api.apply import apply

    result = apply(plan_file, output=output, progress=terminal, command=command_line(), **options)
    show_merge(terminal, result.record, f"Wrote {output} (report: {output / 'report.html'})")
