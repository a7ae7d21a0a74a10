"""`clipmerge merge`: flags and output."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from clipmerge.cli._ending import reporting_errors
from clipmerge.cli._options import (
    FineTuned,
    MaxShardSize,
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
from clipmerge.cli._summary import pushed, show_merge
from clipmerge.cli._terminal import Format, Terminal
from clipmerge.distributed import is_main_process
from clipmerge.errors import UsageError, noting


@reporting_errors
@takes_flags(merge_flags)
def merge_command(
    zeroshot: ZeroShot,
    finetuned: FineTuned,
    shared: dict[str, Any],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure and decide, but write nothing.")] = False,
    max_shard_size: MaxShardSize = None,
    no_hash: NoHash = False,
    overwrite: Overwrite = False,
    push: Annotated[str | None, typer.Option("--push", help="ORG/NAME on the Hub to publish the output to.")] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: create the repository private.")] = False,
    license: Annotated[
        str | None, typer.Option("--license", help="With --push: the licence, if the sources' differ.")
    ] = None,
    fmt: Output = Format.human,
    verbose: Verbose = False,
) -> None:
    """Measure, decide, merge and write."""
    terminal = Terminal(fmt, verbose=verbose)
    if output is None and not dry_run:
        raise UsageError("--output is missing: the folder to write (or --dry-run to write nothing)")
    from clipmerge.api.merge import merge

    result = merge(
        zeroshot,
        finetuned,
        **with_alpha(shared),
        output=None if dry_run else output,
        max_shard_size=max_shard_size,
        hash=not no_hash,
        overwrite=overwrite,
        push=push,
        private=private,
        license=license,
        progress=terminal,
        command=command_line(),
    )
    if not is_main_process():
        return
    if result.path is None:
        show_merge(terminal, result.record, "Dry run: nothing was written.")
        return
    last_line = f"Wrote {output} (report: {result.path / 'report.html'})"
    if result.published is None:
        show_merge(terminal, result.record, last_line)
        return
    published = asdict(result.published)
    outcome = pushed(published)
    with noting(outcome):
        show_merge(terminal, result.record, f"{last_line}\n{outcome}", published=published)
