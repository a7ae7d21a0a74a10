"""`clipmerge inspect`, `evaluate` and `sweep`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipmerge.cli._terminal import Terminal
from clipmerge.cli.app import FineTuned, Output, ZeroShot, command
from clipmerge.options import EvaluateOptions, InspectOptions, SweepOptions
from clipmerge.types import Json

if TYPE_CHECKING:
    from rich.console import RenderableType

# Mismatches that are listed without `-v`.
_MISMATCHES = 3


@command
def inspect_command(
    terminal: Terminal,
    zeroshot: ZeroShot,
    finetuned: Annotated[
        str | None, typer.Argument(metavar="FINETUNED", help="The same, fine-tuned from ZEROSHOT.")
    ] = None,
    **options: Annotated[Any, InspectOptions],
) -> None:
    """List the layers of a checkpoint. With a second checkpoint, also list the mismatches, how far
    each layer moved and, with images, how sharp it is.
    """
    from clipmerge.api.inspect import inspect

    record = inspect(zeroshot, finetuned, progress=terminal, **options).record
    terminal.print_result(record, lambda: _layer_table(record, every=terminal.verbose))


def _layer_table(record: Json, *, every: bool) -> RenderableType:
    """Make a table with a row per kind of layer, or per layer if ``every``, and lines below it."""
    from rich.console import Group

    from clipmerge.report.terminal import render_table

    total = record["total"]
    dtypes = ", ".join(total["dtypes"])
    size = f"{total['parameters']} tensors, {total['size']:,} entries, {dtypes}"
    more = "" if every else f"; -v lists all {len(record['layers'])} layers"
    lines = [f"{record['family']}: {size}{more}"]
    patterns = {}
    if record["finetuned"] is not None:
        patterns["change"] = ".2%"
        lines.append("change = ||finetuned - zeroshot|| / ||zeroshot|| of a layer")
        if "images" in record:
            patterns["sharpness"] = ".2g"
            lines += _sharpness_lines(record)
        lines += _mismatch_lines(record["mismatches"], every=every)
    kinds: dict[str, list[Json]] = {}
    for layer, entry in record["layers"].items():
        kinds.setdefault(layer if every else _kind_of(layer), []).append(entry)
    rows = []
    for kind, entries in kinds.items():
        counts = [sum(entry[name] for entry in entries) for name in ("parameters", "size")]
        ranges = [_range_cell(entries, name, pattern) for name, pattern in patterns.items()]
        rows.append([kind, *(f"{count:,}" for count in counts), *ranges])
    return Group(render_table(["layers", "tensors", "entries", *patterns], rows), *lines)


def _kind_of(layer: str) -> str:
    """Name the kind of a layer: its tower, followed by its part of a block if it is in a block.

    Example:
        >>> _kind_of("vision.3.attn"), _kind_of("text.norm"), _kind_of("logit_scale")
        ('vision.*.attn', 'text, outside blocks', 'logit_scale')
    """
    tower, *places = layer.split(".")
    if any(map(str.isdigit, places)):
        return ".".join([tower, *("*" if place.isdigit() else place for place in places)])
    return f"{tower}, outside blocks" if places else tower


def _range_cell(entries: list[Json], name: str, pattern: str) -> str:
    """Format the smallest and the largest value that some layers have under ``name``."""
    values = [entry[name] for entry in entries if entry.get(name) is not None]
    if not values:
        return "-"
    ends = [format(min(values), pattern), format(max(values), pattern)]
    return " to ".join(dict.fromkeys(ends))


def _mismatch_lines(mismatches: list[str], *, every: bool) -> list[str]:
    if not mismatches:
        return ["The two match: they can be merged."]
    shown = mismatches if every else mismatches[:_MISMATCHES]
    lines = [f"mismatch: {problem}" for problem in shown]
    if more := len(mismatches) - len(shown):
        lines.append(f"-v lists {more} more mismatches")
    return lines


def _sharpness_lines(record: Json) -> list[str]:
    layers = record["layers"].items()
    stragglers = [layer for layer, entry in layers if entry.get("straggler")]
    return [
        "sharpness = largest first-order rise of the loss, in nats, if the layer alone moved as far"
        f" as fine-tuning moved it; on {record['images']} images, half-way",
        f"stragglers (the sharpest layers of the blocks): {', '.join(stragglers)}",
    ]


@command
def evaluate_command(
    terminal: Terminal,
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Folder, file or ORG/NAME[@REVISION].")
    ],
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            "-d",
            metavar="[NAME=]SOURCE",
            rich_help_panel="Images",
            help="Images, named like their folder or file by default; may be repeated.",
        ),
    ],
    **options: Annotated[Any, EvaluateOptions],
) -> None:
    """Measure accuracy and retrieval recall, one row per source."""
    from clipmerge.api.evaluate import evaluate

    record = evaluate(checkpoint, data, progress=terminal, **options).record
    terminal.print_result(record, lambda: _accuracy_table(record))


def _accuracy_table(record: Json) -> RenderableType:
    from clipmerge.report.terminal import render_table

    rows = []
    images = record["images"]
    for name, value in record["accuracy"].items():
        low, high = record["accuracy_intervals"][name]
        interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
        rows.append([name, str(images[name]), f"{value:.1%} {interval}"])
    for name, recall in record["recall"].items():
        # recall is comparable only for equal numbers of images and captions
        gallery = f"{images[name]}, {record['captions'][name]} captions"
        for direction, by_rank in recall.items():
            words = direction.replace("_", " ")
            for rank, value in by_rank.items():
                rows.append([f"{name}, {words} R@{rank}", gallery, f"{value:.1%}"])
    return render_table(["source", "images", "accuracy" if record["accuracy"] else "recall"], rows)


@command
def sweep_command(
    terminal: Terminal,
    zeroshot: ZeroShot,
    finetuned: FineTuned,
    id: Annotated[
        list[str],
        typer.Option(
            "--id",
            metavar="NAME=SOURCE",
            rich_help_panel="Images",
            help="Images like the training data; may be repeated.",
        ),
    ],
    ood: Annotated[
        list[str],
        typer.Option(
            "--ood",
            metavar="NAME=SOURCE",
            rich_help_panel="Images",
            help="Images unlike the training data; may be repeated.",
        ),
    ],
    output: Output,
    **options: Annotated[Any, SweepOptions],
) -> None:
    """Compare recipes with the alpha curve."""
    from clipmerge.api.sweep import sweep
    from clipmerge.report.terminal import sweep_summary

    record = sweep(
        zeroshot, finetuned, id=id, ood=ood, output=output, progress=terminal, **options
    ).record
    last = f"Wrote {output} (all alphas: {output / 'sweep.html'})."
    terminal.print_result(record, lambda: sweep_summary(record), last)
