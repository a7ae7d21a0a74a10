"""The flags shared by several commands: their names and help texts."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from clipmerge.choices import Device, OutputDtype
from clipmerge.cli._defaults import applied
from clipmerge.cli._help import complete_recipe
from clipmerge.cli._terminal import Format
from clipmerge.errors import UsageError

ZeroShot = Annotated[str, typer.Argument(help="Folder, .safetensors file, org/name[@revision] or hf://org/name.")]
FineTuned = Annotated[list[str], typer.Argument(help="The same, fine-tuned from ZEROSHOT; usually one.")]
StateKey = Annotated[
    str | None,
    typer.Option("--state-key", help="Where in the checkpoint's file the weights are, such as 'ema'."),
]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", help="Images of another task, or with captions; may be repeated."),
]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        help="Name of a recipe (auto is the recommended one; all are listed below), or a YAML file.",
        autocompletion=complete_recipe,
    ),
]
OneAlpha = Annotated[
    float | None,
    typer.Option("--alpha", help="Short for --set method.alpha=ALPHA: 0 = zero-shot, 1 = fine-tuned."),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Labelled images: a folder, .parquet, .tar, hf://datasets/ORG/NAME:SPLIT, or a name from `data list`."
    ),
]
Unlabelled = Annotated[
    str | None,
    typer.Option(help="Images from where the model will be used, for a recipe that learns; labels are not read."),
]
Classes = Annotated[Path | None, typer.Option(help="Class names: one per line in their order, JSON, or a list's name.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column (or tar ending) of the images, if not found.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column (or tar ending) of the labels, if not found.")]
Templates = Annotated[
    list[str] | None,
    typer.Option("--template", help="Prompt with {} for the class, or a set's name; may be repeated."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change the recipe, such as method.alpha=0.4; may be repeated."),
]
Images = Annotated[int, typer.Option(min=1, help="Images to measure on, class-balanced.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per batch; by default at most 128.")]
ImagesAtOnce = Annotated[
    int | None,
    typer.Option(min=1, help="Images computed at once; fewer need less memory and leave the batches as they are."),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the sample, the bootstrap and random masks.")]
DeviceName = Annotated[Device, typer.Option("--device", help="Where to measure.")]
DtypeName = Annotated[OutputDtype, typer.Option("--dtype", help="Dtype of the merged weights.")]
Verdict = Annotated[
    bool,
    typer.Option("--verdict/--no-verdict", help="Hold back a fifth of the images and measure what the merge bought."),
]
MaxLoss = Annotated[
    float,
    typer.Option("--max-loss", min=0, help="Points of accuracy that may be lost without a warning."),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Make a loss beyond --max-loss, or a wrong ZEROSHOT, an error: nothing is written."),
]
MaxShardSize = Annotated[
    str | None,
    typer.Option(
        "--max-shard-size",
        help="Largest shard, such as 200MB or 5GB; by default sharded like the fine-tuned checkpoint.",
    ),
]
NoHash = Annotated[bool, typer.Option("--no-hash", help="Do not hash the weights: faster if they are large.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output of the same command.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder written by merge or apply.")]
Output = Annotated[Format, typer.Option("--format", help="Format of standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print each stage, and warnings of libraries.")]


def list_by_default(context: typer.Context, listing: Callable[..., None], fmt: Format) -> None:
    """Run a group's listing command, if no command of the group was given.

    Args:
        context: Context of the group.
        listing: The group's command that lists; takes ``fmt``.
        fmt: Format of standard output.

    Raises:
        UsageError: If a command was given: ``--format`` must then follow it.
    """
    if context.invoked_subcommand is None:
        listing(fmt=fmt)
    elif fmt is not Format.human:
        group, command = context.info_name, context.invoked_subcommand
        raise UsageError(f"--format goes after the command: clipmerge {group} {command} --format")


def command_line() -> str:
    """The running command line as text, to repeat it."""
    import shlex

    return shlex.join(["clipmerge", *sys.argv[1:], *applied.words(sys.argv[1:])])


def with_alpha(shared: dict[str, Any]) -> dict[str, Any]:
    """Turn ``--alpha`` into the assignment that it is short for.

    Args:
        shared: Values of the shared flags.

    Returns:
        The same without ``alpha``.

    Raises:
        UsageError: If ``--set`` says another alpha.
    """
    alpha, given = shared.pop("alpha"), list(shared["set"] or ())
    if alpha is None:
        return shared
    if any(each.partition("=")[0].strip() == "method.alpha" for each in given):
        raise UsageError("--alpha and --set method.alpha: both set the same option; give one of them")
    return {**shared, "set": [*given, f"method.alpha={alpha!r}"]}


def image_flags(
    *,
    classes: Classes = None,
    template: Templates = None,
    batch_size: BatchSize = None,
    images_at_once: ImagesAtOnce = None,
    device: DeviceName = "auto",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
) -> None:
    """The flags of every command that uses images."""


def merge_flags(
    *,
    recipe: RecipeName,
    state_key: StateKey = None,
    data: Data = None,
    unlabelled: Unlabelled = None,
    keep: Keep = None,
    classes: Classes = None,
    template: Templates = None,
    set: Assignments = None,
    alpha: OneAlpha = None,
    images: Images = 1024,
    batch_size: BatchSize = None,
    images_at_once: ImagesAtOnce = None,
    verdict: Verdict = True,
    max_loss: MaxLoss = 3.0,
    strict: Strict = False,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = "keep",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
) -> None:
    """The flags of every command that measures and decides."""


def takes_flags(shared: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add shared flags to a command; it receives their values by name in its parameter ``shared``.

    Args:
        shared: A function whose keyword-only parameters are the flags, named like the API's arguments.
    """
    flags = _flags(shared)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = {name: flag for name, flag in _flags(command).items() if name != "shared"}

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            command(shared={name: given.pop(name) for name in flags}, **given)

        # positional arguments of the command first, then the shared flags, then the command's own
        positional = [name for name, flag in own.items() if flag.default is flag.empty and name in _ARGUMENTS]
        ordered = [own[name] for name in positional] + list(flags.values())
        ordered += [flag for name, flag in own.items() if name not in positional]
        wrapper.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {flag.name: flag.annotation for flag in ordered}
        return wrapper

    return decorate


_ARGUMENTS = ("zeroshot", "finetuned", "checkpoint")


@functools.cache  # shared flags are those of several commands
def _flags(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function with resolved types, as typer reads them."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.replace(annotation=hints[p.name], kind=p.KEYWORD_ONLY) for p in parameters}
