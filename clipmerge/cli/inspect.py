"""`clipmerge inspect`: flags and output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from clipmerge.cli._options import ZeroShot, command
from clipmerge.cli._terminal import Terminal
from clipmerge.types import Json

if TYPE_CHECKING:
    from rich.console import RenderableType

_DOUBTFUL = (
    "The two match, but see the note: they seem not to be a model and its fine-tuned version."
)
#: What a pair without mismatches is told, by the relation of its weights; without one, they were
#: not read.
_MATCHES = {
    "related": "The two match: they can be merged.",
    None: "Names, shapes and dtypes match; the weights were not read.",
}


@command()
def inspect_command(
    terminal: Terminal,
    zeroshot: ZeroShot,
    finetuned: Annotated[
        str | None, typer.Argument(metavar="FINETUNED", help="The same, fine-tuned from ZEROSHOT.")
    ] = None,
    no_weights: Annotated[
        bool,
        typer.Option(
            "--no-weights",
            help="Compare names, shapes and dtypes only; a Hub model is not downloaded.",
            rich_help_panel="Inputs",
        ),
    ] = False,
) -> None:
    """List layers, how far each moved, and mismatches."""
    from clipmerge.api.inspect import inspect

    record = inspect(zeroshot, finetuned, weights=not no_weights, progress=terminal).record
    terminal.result(record, lambda: _table(record))


def _table(record: Json) -> RenderableType:
    """Format the description for a terminal: a table, with the mismatches below it."""
    from rich.console import Group
    from rich.text import Text

    from clipmerge.cli._console import table_of

    paired = record["finetuned"] is not None
    table = table_of("layer", "tensors", "entries", *["change"] * paired)
    for layer, entry in record["layers"].items():
        row = [layer, str(entry["parameters"]), f"{entry['size']:,}"]
        if paired:
            row.append("-" if entry.get("change") is None else f"{entry['change']:.2%}")
        table.add_row(*row)
    total = record["total"]
    dtypes = ", ".join(total["dtypes"])
    lines = [
        Text(
            f"{record['family']}: {total['parameters']} tensors, {total['size']:,} entries,"
            f" {dtypes}"
        )
    ]
    if paired:
        lines.append(Text("change = ||finetuned - zeroshot|| / ||zeroshot|| of the layer"))
        if record["ancestry"] and record["ancestry"]["cosines"]:
            cosines = ", ".join(
                f"{cosine:.2f} ({tower})" for tower, cosine in record["ancestry"]["cosines"].items()
            )
            lines.append(
                Text(
                    f"median cosine between their matrices: {cosines}; about 0 between models"
                    " trained apart"
                )
            )
        lines += [Text(f"mismatch: {problem}", style="red") for problem in record["mismatches"]]
        if not record["mismatches"]:
            lines.append(
                Text(_MATCHES.get(record["ancestry"] and record["ancestry"]["relation"], _DOUBTFUL))
            )
    return Group(table, *lines)
