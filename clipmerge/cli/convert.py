"""`clipmerge convert`: flags and output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

import typer

from clipmerge.cli._options import command
from clipmerge.cli._terminal import Terminal
from clipmerge.config import ConvertOptions
from clipmerge.types import Json

if TYPE_CHECKING:
    from rich.console import RenderableType


@command(ConvertOptions)
def convert_command(
    terminal: Terminal,
    checkpoint: Annotated[
        str, typer.Argument(metavar="IN", help="Folder, .safetensors file or org/name[@revision].")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="LIBRARY", help="Library to load it with: transformers or open-clip."
        ),
    ],
    **options: Unpack[ConvertOptions],
) -> None:
    """Convert between OpenCLIP's and transformers' layout."""
    from clipmerge.api.convert import convert

    record = convert(checkpoint, output, to=to, **options).record
    if record:  # of the main process
        terminal.result(record, lambda: _files_table(record))
        loading = f"open_clip.create_model_and_transforms('local-dir:{output}')"
        if record["to"] == "transformers":
            loading = f"CLIPModel.from_pretrained('{output}')"
        terminal.show(f"Wrote {output}; load it with: {loading}")


def _files_table(record: Json) -> RenderableType:
    from rich.table import Column, Table

    table = Table("file", Column("sha256", overflow="fold"), box=None, pad_edge=False)
    for name, digest in record["files"].items():
        table.add_row(name, digest)
    return table
