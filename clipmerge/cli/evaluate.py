"""`clipmerge evaluate`: flags and output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Unpack

import typer

from clipmerge.cli._options import command
from clipmerge.cli._terminal import Terminal
from clipmerge.config import EvaluateOptions
from clipmerge.types import Json

if TYPE_CHECKING:
    from rich.console import RenderableType


@command(EvaluateOptions)
def evaluate_command(
    terminal: Terminal,
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="Folder, .safetensors file or org/name[@revision]."
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "-d",
            metavar="[NAME=]SOURCE",
            help="Images, named like their folder or file by default; may be repeated.",
            rich_help_panel="Images",
        ),
    ] = None,
    **options: Unpack[EvaluateOptions],
) -> None:
    """Measure accuracy and retrieval recall, one row per source."""
    from clipmerge.api.evaluate import evaluate

    record = evaluate(checkpoint, data, **options).record
    terminal.result(record, lambda: _table(record))


def _table(record: Json) -> RenderableType:
    """Format the accuracies for a terminal."""
    from clipmerge.cli._console import table_of

    heading = "recall" if not record["accuracy"] and "recall" in record else "accuracy"
    table = table_of("source", "images", heading)
    for name, value in record["accuracy"].items():
        low, high = record["accuracy_intervals"][name]
        interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
        table.add_row(name, str(record["images"][name]), f"{value:.1%} {interval}")
    for name, recall in record.get("recall", {}).items():
        gallery = _gallery(record["images"][name], record["captions"][name])
        for way, by_rank in recall.items():
            for rank, value in by_rank.items():
                table.add_row(f"{name}, {way.replace('_', ' ')} R@{rank}", gallery, f"{value:.1%}")
    return table


def _gallery(images: int, captions: int) -> str:
    """What is searched: recalls of other numbers of images and captions do not compare."""
    return f"{images}, {captions} captions" if captions else str(images)
