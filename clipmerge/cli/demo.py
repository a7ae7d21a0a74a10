"""`clipmerge demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipmerge.cli._terminal import Terminal
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
            rich_help_panel="Write",
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
    from clipmerge.report.terminal import render_table

    accuracy: dict[str, dict[str, float]] = record["accuracy"]
    rows = []
    for model, by_images in accuracy.items():
        shares = [*by_images.values(), mean_shifted(by_images)]
        rows.append([model, *(f"{100 * share:.1f}" for share in shares)])
    heads = ["accuracy, %", *next(iter(accuracy.values())), "mean shifted"]
    return Group(
        render_table(heads, rows),
        f"Report of auto: {record['report']}",
        "Next, with your own pair and about a thousand labelled images:",
        "  clipmerge merge ZEROSHOT FINETUNED --data IMAGES --output merged",
        Text(record["headline"], "bold"),
    )
