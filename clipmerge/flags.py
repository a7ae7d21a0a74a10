"""The flags that several commands share: what they are called, and what their help says."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from clipmerge.console import Format
from clipmerge.errors import UsageError

DEVICES = ("auto", "cpu", "cuda", "mps")

ZeroShot = Annotated[str, typer.Argument(help="Folder, .safetensors file, org/name[@revision] or hf://org/name.")]
FineTuned = Annotated[list[str], typer.Argument(help="The same, fine-tuned from ZEROSHOT; usually one.")]
RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="Name of a recipe, or a YAML file.")]
Data = Annotated[
    str | None,
    typer.Option(help="Labelled images: a folder, .parquet, .tar, hf://datasets/ORG/NAME:SPLIT or 'digits'."),
]
Classes = Annotated[Path | None, typer.Option(help="Class names, one a line in the order of the classes, or JSON.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column (or tar ending) of the images, if not found.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column (or tar ending) of the labels, if not found.")]
Templates = Annotated[
    list[str] | None, typer.Option("--template", help="Prompt with {} for the class; may be repeated.")
]
Assignments = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE in the recipe; may be repeated.")]
Images = Annotated[int, typer.Option(min=1, help="Images to measure on, class-balanced.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images a batch; by default at most 128.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the sample, the bootstrap and random masks.")]
DeviceName = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
DtypeName = Annotated[str, typer.Option("--dtype", help="keep, float32, bfloat16 or float16.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output of clipmerge.")]
Output = Annotated[Format, typer.Option("--format", help="What stdout carries.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say each stage; keep library warnings.")]


def choice(flag: str, value: str, options: tuple[str, ...]) -> Any:
    """Check the value of a flag that knows a few words.

    Args:
        flag: The flag, for the message.
        value: What the user wrote, in any case.
        options: The words it knows.

    Returns:
        The value in lower case.

    Raises:
        UsageError: If it is none of them.
    """
    if value.lower() not in {option.lower() for option in options}:
        raise UsageError(f"{flag} {value}: choose from {', '.join(options)}")
    return value.lower()


def command_line() -> str:
    """The command that is running, to be run again."""
    return shlex.join(["clipmerge", *sys.argv[1:]])
