"""`clipmerge plan`: flags and output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clipmerge.cli._ending import reporting_errors
from clipmerge.cli._options import (
    FineTuned,
    NoHash,
    Output,
    Overwrite,
    Verbose,
    ZeroShot,
    command_line,
    merge_flags,
    takes_flags,
    with_alpha,
)
from clipmerge.cli._summary import show_merge
from clipmerge.cli._terminal import Format, Terminal


@reporting_errors
@takes_flags(merge_flags)
def plan_command(
    zeroshot: ZeroShot,
    finetuned: FineTuned,
    shared: dict[str, Any],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")],
    no_hash: NoHash = False,
    overwrite: Overwrite = False,
    fmt: Output = Format.human,
    verbose: Verbose = False,
) -> None:
    """Measure and decide like merge, and write the plan."""
    terminal = Terminal(fmt, verbose=verbose)
    from clipmerge.api.plan import plan_run

    run = plan_run(
        zeroshot,
        finetuned,
        **with_alpha(shared),
        output=output,
        overwrite=overwrite,
        hash=not no_hash,
        progress=terminal,
        command=command_line(),
    )
    if not run.is_main:
        return
    from clipmerge.output.record import merge_record

    record = merge_record(
        run.inputs, run.decided, output=output, seconds=run.seconds, command=run.command, tensors=run.tensors
    )
    show_merge(terminal, record, f"Wrote {output}; apply it with: clipmerge apply {output} --output DIR")
