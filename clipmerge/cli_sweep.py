"""`clipmerge sweep`: its flags, and what it prints."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated

import typer

from clipmerge.console import Format, Terminal, reporting_errors
from clipmerge.errors import UsageError
from clipmerge.flags import (
    DEVICES,
    DTYPE_NAMES,
    BatchSize,
    Classes,
    Data,
    DeviceName,
    DtypeName,
    FineTuned,
    ImageColumn,
    Images,
    LabelColumn,
    Output,
    Overwrite,
    Seed,
    Templates,
    Verbose,
    ZeroShot,
    choice,
    command_line,
)

_MOST_ALPHAS = 1000


def parse_alphas(text: str) -> tuple[float, ...]:
    """Read the points of the curve; ``...`` goes on in the step of the two before it.

    Args:
        text: Numbers with commas between.

    Returns:
        The numbers, ascending, each once.

    Raises:
        UsageError: If something in it is no number, or the steps do not lead on.

    Example:
        >>> parse_alphas("0,0.25,...,1")
        (0.0, 0.25, 0.5, 0.75, 1.0)
    """
    words = [word.strip() for word in text.split(",")]
    values: list[Decimal] = []
    try:
        for place, word in enumerate(words):
            values += _steps(values[-2], values[-1], Decimal(words[place + 1])) if word == "..." else [Decimal(word)]
        finite = all(value.is_finite() for value in values)
    except (InvalidOperation, IndexError, ValueError):
        finite = False
    if not finite:
        raise UsageError(f"--alphas {text}: expected numbers with commas between, such as 0,0.25,0.5 or 0,0.1,...,1")
    return tuple(sorted({float(value) for value in values}))


def _steps(before: Decimal, last: Decimal, end: Decimal) -> list[Decimal]:
    """What lies between ``last`` and ``end``, in the step that led to ``last``."""
    step = last - before
    if not step or not 0 < (end - last) / step <= _MOST_ALPHAS:
        raise ValueError("the steps do not lead there")
    return [last + step * turn for turn in range(1, int((end - last) / step) + 1)]


def _named(flag: str, texts: list[str]) -> dict[str, str]:
    from clipmerge.evaluate import parse_named_source

    sources = [parse_named_source(text) for text in texts]
    if len(dict(sources)) != len(sources):
        raise UsageError(f"two {flag} have the same name; write NAME=SOURCE with different names")
    return dict(sources)


@reporting_errors
def sweep_command(
    zeroshot: ZeroShot,
    finetuned: FineTuned,
    id_data: Annotated[
        list[str], typer.Option("--id", help="NAME=SOURCE: images like the training data; may be repeated.")
    ],
    ood_data: Annotated[list[str], typer.Option("--ood", help="NAME=SOURCE: images unlike it; may be repeated.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", "-r", help="Recipe to place beside the curve; may be repeated.")
    ] = None,
    alphas: Annotated[str, typer.Option(help="Points of the curve; 0 = zero-shot, 1 = fine-tuned.")] = "0,0.1,...,1",
    data: Data = None,
    classes: Classes = None,
    template: Templates = None,
    images: Images = 1024,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = "keep",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    overwrite: Overwrite = False,
    fmt: Output = Format.human,
    verbose: Verbose = False,
) -> None:
    """Compare recipes with every alpha: ID against OOD accuracy, in a table, a picture and a page."""
    from clipmerge.data import check_templates
    from clipmerge.images import Columns
    from clipmerge.images.places import local_inputs
    from clipmerge.recipe import load_recipe
    from clipmerge.run import Calibration
    from clipmerge.staging import check_output
    from clipmerge.sweep import SWEEP_RECORD, SweepRequest, check_sweep, write_sweep

    terminal = Terminal(fmt, verbose=verbose)
    where = choice("--device", device, DEVICES)
    request = SweepRequest(
        zeroshot=zeroshot,
        finetuned=finetuned[0],
        further=tuple(finetuned[1:]),
        id_sources=_named("--id", id_data),
        ood_sources=_named("--ood", ood_data),
        recipes=tuple(load_recipe(name) for name in recipe or []),
        alphas=parse_alphas(alphas),
        calibration=Calibration(
            data,
            classes,
            check_templates(template or []),
            images,
            batch_size,
            where,
            Columns(image_column, label_column),
        ),
        seed=seed,
        dtype=choice("--dtype", dtype, DTYPE_NAMES),
        command=command_line(),
    )
    check_sweep(request)
    files = [name for name in recipe or [] if Path(name).is_file()]  # not a folder of a recipe's name
    read = local_inputs(*request.id_sources.values(), *request.ood_sources.values(), data, classes, *files)
    check_output(output, overwrite=overwrite, read=read, record=SWEEP_RECORD)
    record = write_sweep(request, output, overwrite=overwrite, progress=terminal)
    from clipmerge.curve import SweepTable

    terminal.result(record, lambda: SweepTable(record))
    terminal.show(f"Wrote {output} (page: {output / 'sweep.html'}, picture: {output / 'curve.png'})")
