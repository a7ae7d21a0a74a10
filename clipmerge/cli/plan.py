"""`clipmerge plan`: flags and output."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Unpack

from clipmerge.cli._options import (
    FineTuned,
    RecipeName,
    ZeroShot,
    command,
    output_flag,
)
from clipmerge.cli._terminal import Terminal, show_merge
from clipmerge.config import PlanOptions


@command(PlanOptions)
def plan_command(
    terminal: Terminal,
    zeroshot: ZeroShot,
    finetuned: FineTuned,
    output: Annotated[Path, output_flag("JSON file to write.")],
    recipe: RecipeName = None,
    **options: Unpack[PlanOptions],
) -> None:
    """Measure and decide like merge, and write the plan."""
    from clipmerge.api.merge import plan_run

    run = plan_run(zeroshot, finetuned, recipe, output, **options)
    if not run.is_main:
        return
    from clipmerge.output.record import merge_record

    record = merge_record(run, run.decided_plan, output=output)
    apply = shlex.join(["clipmerge", "apply", str(output), "--output", "DIR"])
    show_merge(terminal, record, f"Wrote {output}; apply it with: {apply}")
