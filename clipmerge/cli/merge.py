"""`clipmerge merge`: flags and output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

from clipmerge.cli._options import (
    FineTuned,
    RecipeName,
    ZeroShot,
    command,
    output_flag,
)
from clipmerge.cli._terminal import Terminal, push_outcome, show_merge
from clipmerge.config import MergeOptions
from clipmerge.errors import adding_note


@command(MergeOptions)
def merge_command(
    terminal: Terminal,
    zeroshot: ZeroShot,
    finetuned: FineTuned,
    output: Annotated[Path, output_flag("Folder to write.")],
    recipe: RecipeName = None,
    **options: Unpack[MergeOptions],
) -> None:
    """Measure, decide, merge and write."""
    from clipmerge.api.merge import merge

    result = merge(
        zeroshot,
        finetuned,
        recipe,
        output=output,
        **options,
    )
    last_line = f"Wrote {output} (report: {output / 'report.html'})"
    if result.published is None:
        show_merge(terminal, result.record, last_line)
        return
    published = result.published.model_dump()
    outcome = push_outcome(published)
    with adding_note(outcome):
        show_merge(terminal, result.record, f"{last_line}\n{outcome}", published=published)
