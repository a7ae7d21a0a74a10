"""`clipmerge demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipmerge.cli._terminal import Terminal, table_of
from clipmerge.cli.app import command
from clipmerge.types import Json

if TYPE_CHECKING:
    from rich.console import RenderableType


@command
def demo_command(
    terminal: Terminal,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for models and images; the user's cache by default.",
        ),
    ] = None,
) -> None:
    """Merge two small CLIPs that come with clipmerge, and compare."""
    from clipmerge.api.demo import demo

    record = demo(output, progress=terminal)
    terminal.print_result(record, lambda: _accuracy_table(record))


def _accuracy_table(record: Json) -> RenderableType:
    """Accuracy of each model on each set of images."""
    from rich.console import Group
    from rich.text import Text

    from clipmerge.api.demo import mean_shifted

    accuracy: dict[str, dict[str, float]] = record["accuracy"]
    shifts = [name for name in next(iter(accuracy.values())) if name != "clean"]
    table = table_of("accuracy, %", "clean", *shifts, "mean shifted")
    for model, by_images in accuracy.items():
        cells = [by_images["clean"], *(by_images[name] for name in shifts), mean_shifted(by_images)]
        table.add_row(model, *(f"{100 * value:.1f}" for value in cells))
    return Group(
        table,
        f"Report of auto: {record['report']}",
        "Next, with your own pair and about a thousand labelled images:",
        "  clipmerge merge ZEROSHOT FINETUNED --data IMAGES --output merged",
        Text(record["headline"], "bold"),
    )
