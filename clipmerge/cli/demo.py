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
    terminal.print_result(record, lambda: _summary(record))


def _summary(record: Json) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from clipmerge.api.demo import accuracy_table
    from clipmerge.report.terminal import render_table

    return Group(
        render_table(*accuracy_table(record)),
        Text(record["headline"], "bold"),
        f"Its report: {record['report']}",
        "Next, with your own pair and a few hundred labelled images:",
        "  clipmerge merge ZEROSHOT FINETUNED --data IMAGES --output merged",
    )
