"""`clipmerge merge`: flags and output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from clipmerge.cli._options import (
    FineTuned,
    RecipeName,
    ZeroShot,
    command,
    output_flag,
)
from clipmerge.cli._terminal import Terminal, push_outcome, show_merge
from clipmerge.config import MergeOptions
from clipmerge.errors import UsageError, adding_note


@command(MergeOptions)
def merge_command(
    terminal: Terminal,
    zeroshot: ZeroShot,
    finetuned: FineTuned,
    recipe: RecipeName = None,
    output: Annotated[
        Path | None, output_flag("Folder to write; required unless --dry-run.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Measure and decide, but write nothing.", rich_help_panel="Output"
        ),
    ] = False,
    **options: Unpack[MergeOptions],
) -> None:
    """Measure, decide, merge and write."""
    if output is None and not dry_run:
        raise UsageError("--output is missing: the folder to write (or --dry-run to write nothing)")
    from clipmerge.api.merge import merge

    target = None if dry_run else output
    result = merge(
        zeroshot,
        finetuned,
        recipe,
        output=target,
        **options,
    )
    last_line = "Dry run: nothing was written."
    if result.path is not None:
        last_line = f"Wrote {output} (report: {result.path / 'report.html'})"
    if result.published is None:
        show_merge(terminal, result.record, last_line)
        return
    published = result.published.model_dump()
    outcome = push_outcome(published)
    with adding_note(outcome):
        show_merge(terminal, result.record, f"{last_line}\n{outcome}", published=published)
