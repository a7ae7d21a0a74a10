"""`clipmerge sweep`: flags and output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

from clipmerge.cli._options import (
    FineTuned,
    ZeroShot,
    command,
    output_flag,
    sources_flag,
)
from clipmerge.cli._terminal import Terminal
from clipmerge.config import SweepOptions


@command(SweepOptions)
def sweep_command(
    terminal: Terminal,
    zeroshot: ZeroShot,
    finetuned: FineTuned,
    id: Annotated[
        list[str], sources_flag("--id", "Images like the training data; may be repeated.")
    ],
    ood: Annotated[
        list[str], sources_flag("--ood", "Images unlike the training data; may be repeated.")
    ],
    output: Annotated[Path, output_flag("Folder to write.")],
    **options: Unpack[SweepOptions],
) -> None:
    """Compare recipes with the alpha curve.

    ID and OOD accuracy of each, as a table, a picture and a page.
    """
    from clipmerge.api.sweep import sweep
    from clipmerge.report.terminal import sweep_summary

    record = sweep(
        zeroshot,
        finetuned,
        id=id,
        ood=ood,
        output=output,
        **options,
    ).record
    terminal.result(record, lambda: sweep_summary(record))
    terminal.end(f"Wrote {output} (page: {output / 'sweep.html'}, picture: {output / 'sweep.png'})")
