"""Flags, made from the options that the functions take, and those that only commands have."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from clipmerge.cli._defaults import applied
from clipmerge.cli._help import complete_recipe
from clipmerge.cli._terminal import Format
from clipmerge.errors import UsageError
from clipmerge.options import RECIPE, VERBOSE, Option, declared

ZeroShot = Annotated[
    str, typer.Argument(metavar="ZEROSHOT", help="Folder, .safetensors file, ORG/NAME[@REVISION] or hf://ORG/NAME.")
]
FineTuned = Annotated[
    list[str], typer.Argument(metavar="FINETUNED", help="The same, fine-tuned from ZEROSHOT; usually one.")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder written by merge or apply.")]

# Endings of files; a folder may be called merged-0.4.
_OF_FILES = frozenset((".bin", ".csv", ".html", ".json", ".md", ".pt", ".safetensors", ".txt", ".yaml", ".zip"))


def flag_of(name: str, option: Option) -> Any:
    """The flag of an option, for typer."""
    return typer.Option(
        *(option.flags or (option.flag(name),)),
        help=option.help,
        metavar=option.value,
        min=option.least,
        rich_help_panel=option.panel,
        autocompletion=complete_recipe if option.value == "RECIPE" else None,
    )


def output_flag(help: str) -> Any:  # named like typer's own argument
    """The flag that says where a command writes."""
    return typer.Option("--output", "-o", help=help, metavar="PATH", rich_help_panel="Output", callback=question_output)


def question_output(context: typer.Context, output: Path | None) -> Path | None:
    """Refuse a folder that is named like a file, which was probably meant to be one."""
    if output is not None and context.command.name != "plan" and output.suffix.lower() in _OF_FILES:
        raise typer.BadParameter(
            f"{output} is named like a file, but `{context.command_path}` writes a folder; give a name without "
            f"'{output.suffix}'"
        )
    return output


def sources_flag(name: str, help: str) -> Any:
    """A flag that names images, one source each time it is given."""
    return typer.Option(name, help=help, metavar="NAME=SOURCE", rich_help_panel="Images")


RecipeName = Annotated[str, flag_of("recipe", RECIPE)]
Output = Annotated[Format, typer.Option("--format", help="Format of standard output.", rich_help_panel="Output")]
Verbose = Annotated[bool, flag_of("verbose", VERBOSE)]


def takes_options(options: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of a function's options; it receives their values as ``**options``."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = [
            each.replace(annotation=hints[each.name], kind=each.KEYWORD_ONLY)
            for each in inspect.signature(command).parameters.values()
            if each.kind is not each.VAR_KEYWORD
        ]
        flags = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=option.default,
                annotation=Annotated[option.cli or kind, flag_of(name, option)],
            )
            for name, (kind, option) in declared(options).items()
        ]

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            command(**given)

        wrapper.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {each.name: each.annotation for each in (*own, *flags)}
        return wrapper

    return decorate


def list_by_default(context: typer.Context, listing: Callable[..., None], fmt: Format) -> None:
    """Run a group's listing command if no command of the group was given; ``--format`` must follow one that was."""
    if context.invoked_subcommand is None:
        listing(fmt=fmt)
    elif fmt is not Format.human:
        group, command = context.info_name, context.invoked_subcommand
        raise UsageError(f"--format goes after the command: clipmerge {group} {command} --format")


def command_line() -> str:
    """The running command line as text, to repeat it."""
    import shlex

    return shlex.join(["clipmerge", *sys.argv[1:], *applied.words(sys.argv[1:])])
