"""`clipmerge apply`: flags and output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipmerge.cli._ending import reporting_errors
from clipmerge.cli._options import MaxShardSize, NoHash, Output, Overwrite, Verbose, command_line
from clipmerge.cli._summary import show_merge
from clipmerge.cli._terminal import Format, Terminal


@reporting_errors
def apply_command(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="JSON file written by plan; may be edited.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    max_shard_size: MaxShardSize = None,
    no_hash: NoHash = False,
    overwrite: Overwrite = False,
    fmt: Output = Format.human,
    verbose: Verbose = False,
) -> None:
    """Apply a plan: writes the same bytes as merge."""
    terminal = Terminal(fmt, verbose=verbose)
    from clipmerge.api.apply import apply

    result = apply(
        plan_file,
        output=output,
        max_shard_size=max_shard_size,
        hash=not no_hash,
        overwrite=overwrite,
        progress=terminal,
        command=command_line(),
    )
    show_merge(terminal, result.record, f"Wrote {output} (report: {output / 'report.html'})")
