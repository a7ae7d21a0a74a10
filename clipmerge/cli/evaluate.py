"""`clipmerge evaluate`: flags and output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipmerge.cli._ending import reporting_errors
from clipmerge.cli._options import Output, Verbose, image_flags, takes_flags
from clipmerge.cli._terminal import Format, Terminal

if TYPE_CHECKING:
    from rich.console import RenderableType


@reporting_errors
@takes_flags(image_flags)
def evaluate_command(
    checkpoint: Annotated[str, typer.Argument(help="Folder, .safetensors file or org/name[@revision].")],
    data: Annotated[list[str], typer.Option(help="NAME=SOURCE; may be repeated.")],
    shared: dict[str, Any],
    fmt: Output = Format.human,
    verbose: Verbose = False,
) -> None:
    """Measure zero-shot accuracy, one row per source."""
    terminal = Terminal(fmt, verbose=verbose)
    from clipmerge.api.evaluate import evaluate
    from clipmerge.evaluation.sources import named_sources

    record = evaluate(checkpoint, named_sources("--data", data), **shared, progress=terminal).record
    terminal.result(record, lambda: _table(record))


def _table(record: dict[str, Any]) -> RenderableType:
    """Format the accuracies for a terminal."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("source")
    table.add_column("images", justify="right")
    table.add_column("accuracy", justify="right")
    for name, value in record["accuracy"].items():
        table.add_row(name, str(record["images"][name]), f"{value:.1%}")
    return table
