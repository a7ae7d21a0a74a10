"""`clipmerge demo`: flags and output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from clipmerge.cli._options import command, output_flag
from clipmerge.cli._terminal import Terminal
from clipmerge.types import Json

if TYPE_CHECKING:
    from rich.console import RenderableType


@command()
def demo_command(
    terminal: Terminal,
    output: Annotated[
        Path | None, output_flag("Folder for models and images; the user's cache by default.")
    ] = None,
) -> None:
    """Merge two small CLIPs that come with clipmerge, and compare."""
    from rich.text import Text

    from clipmerge.api.demo import demo

    record = demo(output, progress=terminal)
    terminal.result(record, lambda: _table(record))
    terminal.show(
        f"Report of auto: {record['report']}",
        "Next, with your own pair and about a thousand labelled images:",
        "  clipmerge merge ZEROSHOT FINETUNED --recipe auto --data IMAGES --output merged",
        Text(record["headline"], "bold"),
    )


def _table(record: Json) -> RenderableType:
    """Format the demo's result for a terminal: accuracy of each model on each set of images."""
    from clipmerge.api.demo import mean_shifted
    from clipmerge.cli._console import table_of

    accuracy: dict[str, dict[str, float]] = record["accuracy"]
    shifts = [name for name in next(iter(accuracy.values())) if name != "clean"]
    table = table_of("accuracy, %", "clean", *shifts, "mean shifted")
    for model, by_images in accuracy.items():
        cells = [by_images["clean"], *(by_images[name] for name in shifts), mean_shifted(by_images)]
        table.add_row(model, *(f"{100 * value:.1f}" for value in cells))
    return table
