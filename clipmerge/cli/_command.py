"""From the declared options of a function to a command of typer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from clipmerge.cli._ending import tell
from clipmerge.cli._terminal import Terminal
from clipmerge.errors import UsageError
from clipmerge.files.paths import recipe_files
from clipmerge.options import Options, flags_of


def complete_recipe(incomplete: str) -> list[str]:
    """Complete a recipe: a shipped one, or a YAML file here."""
    folder, slash, _ = incomplete.rpartition("/")
    found = Path(folder + slash or ".").glob("*.y*ml")
    names = [*recipe_files(), *sorted(f"{folder}{slash}{file.name}" for file in found)]
    return [name for name in names if name.startswith(incomplete)]


ZeroShot = Annotated[
    str, typer.Argument(metavar="ZEROSHOT", help="Folder, file, ORG/NAME[@REVISION] or adapter.")
]
FineTuned = Annotated[
    list[str],
    typer.Argument(metavar="FINETUNED", help="The same, fine-tuned from ZEROSHOT; usually one."),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        metavar="RECIPE",
        help="Name or YAML file; by default auto with --data and without --alpha, else wise-ft.",
        autocompletion=complete_recipe,
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="Where to write.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
_Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.")
]

_Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print each stage, and warnings of libraries.")
]


def command(options: type[Options] | None = None) -> Callable[[Any], Callable[..., None]]:
    """Make a command of a function that takes a terminal, its own flags and, as ``options``, those
    of a class by keyword.
    """

    def decorate(function: Any) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        own = [
            each.replace(annotation=hints[each.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for each in inspect.signature(function).parameters.values()
            if each.name not in ("terminal", "options")
        ]
        flags = flags_of(options) if options else {}
        defaults = {field.name: field.default for field in fields(options)} if options else {}
        declared = [
            _parameter(name, kind, None if defaults[name] == () else defaults[name])
            for name, kind in flags.items()
        ]
        common = [
            _parameter(name, kind, False)
            for name, kind in (("as_json", _Json), ("quiet", _Quiet), ("verbose", _Verbose))
        ]

        @functools.wraps(function)
        def run(as_json: bool, quiet: bool, verbose: bool, **values: Any) -> None:
            if as_json and quiet:
                raise UsageError("--json and --quiet contradict each other; give one of them")
            terminal = Terminal(as_json=as_json, quiet=quiet, verbose=verbose)
            if options:
                values["options"] = {name: values.pop(name) for name in flags}
            try:
                function(terminal, **values)
            except KeyboardInterrupt as error:  # typer would print an empty line
                terminal.close()
                raise typer.Exit(tell(error)) from None
            finally:
                terminal.close()

        parameters = [*own, *declared, *common]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
