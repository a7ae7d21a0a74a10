"""`clipmerge plan`: flags and output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

from clipmerge.cli._ending import reporting_errors
from clipmerge.cli._options import (
    FineTuned,
    Output,
    RecipeName,
    Verbose,
    ZeroShot,
    command_line,
    output_flag,
    takes_options,
)
from clipmerge.cli._summary import show_merge
from clipmerge.cli._terminal import Format, Terminal
from clipmerge.options import PlanOptions


@reporting_errors
@takes_options(PlanOptions)
def plan_command(
    zeroshot: ZeroShot,
    finetuned: FineTuned,
    recipe: RecipeName,
    output: Annotated[Path, output_flag("JSON file to write.")],
    fmt: Output = Format.human,
    verbose: Verbose = False,
    **options: Unpack[PlanOptions],
) -> None:
    """Measure and decide like merge, and write the plan."""
    terminal = Terminal(fmt, verbose=verbose)
    from clipmerge.api.plan import plan_run

    run = plan_run(zeroshot, finetuned, recipe, output, progress=terminal, command=command_line(), **options)
    if not run.is_main:
        return
    from clipmerge.output.record import merge_record

    record = merge_record(
        run.inputs, run.light_plan, output=output, seconds=run.seconds, command=run.command, tensors=run.tensors
    )
    show_merge(terminal, record, f"Wrote {output}; apply it with: clipmerge apply {output} --output DIR")
