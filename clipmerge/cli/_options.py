"""Flags, made from the options that the functions take, and those that only commands have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from clipmerge.cli._ending import tell
from clipmerge.cli._help import complete_recipe, examples
from clipmerge.cli._terminal import Format, Terminal
from clipmerge.config import RECIPE, VERBOSE, Option, declarations, with_flags
from clipmerge.errors import UsageError

ZeroShot = Annotated[
    str,
    typer.Argument(
        metavar="ZEROSHOT", help="Folder, .safetensors file, ORG/NAME[@REVISION] or hf://ORG/NAME."
    ),
]
FineTuned = Annotated[
    list[str],
    typer.Argument(metavar="FINETUNED", help="The same, fine-tuned from ZEROSHOT; usually one."),
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder written by merge or apply.")]

_Function = Callable[..., None]


def flag_of(name: str, option: Option) -> Any:
    """The flag of an option, for typer."""
    return typer.Option(
        *option.names(name),
        help=with_flags(option.help),
        metavar=option.metavar,
        min=option.minimum,
        max=option.maximum,
        rich_help_panel=option.panel,
        autocompletion=complete_recipe if option.metavar == "RECIPE" else None,
    )


def output_flag(help: str) -> Any:  # named like typer's own argument
    """The flag that says where a command writes."""
    return typer.Option("--output", "-o", help=help, metavar="PATH", rich_help_panel="Output")


def sources_flag(name: str, help: str) -> Any:
    """A flag that names images, one source each time it is given."""
    return typer.Option(name, help=help, metavar="NAME=SOURCE", rich_help_panel="Images")


RecipeName = Annotated[str | None, flag_of("recipe", RECIPE)]
JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel="Output")
]
QuietFlag = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Print warnings and errors alone.", rich_help_panel="Output"
    ),
]


def command(
    options: type | None = None, *, verbose: bool = True
) -> Callable[[_Function], _Function]:
    """Make a command of a function that takes a terminal, its own flags and, as ``**options``,
    those of a class.

    It has ``--json``, ``--quiet`` and, unless it says otherwise, ``--verbose``.
    """

    def decorate(function: _Function) -> _Function:
        hints = get_type_hints(function, include_extras=True)
        flags: dict[str, tuple[Any, Any]] = {
            parameter.name: (hints[parameter.name], parameter.default)
            for parameter in inspect.signature(function).parameters.values()
            if parameter.name not in ("terminal", "options")
        }
        flags["as_json"] = (JsonFlag, False)
        flags["quiet"] = (QuietFlag, False)
        if verbose:
            flags["verbose"] = (Annotated[bool, flag_of("verbose", VERBOSE)], False)
        known = declarations(options) if options else {}
        for name, (kind, option) in known.items():
            if option.help:
                flags[name] = (Annotated[option.cli or kind, flag_of(name, option)], option.default)

        @functools.wraps(function)
        def wrapper(
            as_json: bool = False,
            quiet: bool = False,
            verbose: bool = False,
            **values: Any,
        ) -> None:
            terminal = Terminal(_format(as_json=as_json, quiet=quiet), verbose=verbose)
            if "progress" in known:
                values["progress"] = terminal
            try:
                function(terminal, **values)
            except KeyboardInterrupt as error:  # typer would print an empty line
                raise typer.Exit(tell(error)) from None

        parameters = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )
            for name, (kind, default) in flags.items()
        ]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {name: kind for name, (kind, _) in flags.items()}
        return wrapper

    return decorate


def _format(*, as_json: bool, quiet: bool) -> Format:
    """The format that a flag or its short forms ask for."""
    if as_json and quiet:
        raise UsageError("--json and --quiet: both set the format; give one of them")
    if as_json:
        return Format.json
    return Format.quiet if quiet else Format.human


def command_group(name: str, help: str) -> typer.Typer:
    """A group of commands that runs its ``list`` if none of them was given; ``--json`` must
    follow one that was.
    """
    group = typer.Typer(help=help, invoke_without_command=True, epilog=examples(name))

    @group.callback()
    def list_by_default(
        context: typer.Context,
        as_json: JsonFlag = False,
        quiet: QuietFlag = False,
    ) -> None:
        if context.invoked_subcommand is None:
            group_command: Any = context.command
            group_command.commands["list"].callback(as_json=as_json, quiet=quiet)
        elif as_json or quiet:
            raise UsageError(
                f"--json and --quiet go after the command: clipmerge {name}"
                f" {context.invoked_subcommand} --json"
            )

    return group
