"""From the declared options of a function to a command of typer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from clipmerge.cli._terminal import Terminal, tell
from clipmerge.errors import UsageError
from clipmerge.files.paths import recipe_files
from clipmerge.options import Options, flags_of
from clipmerge.types import Names


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
    return functools.partial(_make_command, options)


def _make_command(options: type[Options] | None, function: Any) -> Callable[..., None]:
    hints = get_type_hints(function, include_extras=True)
    parameters = [
        each.replace(annotation=hints[each.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for each in inspect.signature(function).parameters.values()
        if each.name not in ("terminal", "options")
    ]
    flags = flags_of(options) if options else {}
    for name, kind in {**flags, "as_json": _Json, "quiet": _Quiet, "verbose": _Verbose}.items():
        default = getattr(options, name, False)
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None if default == () else default,
                annotation=kind,
            )
        )
    run: Any = functools.partial(_run, function, tuple(flags))
    functools.update_wrapper(run, function)
    run.__signature__ = inspect.Signature(parameters)
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run  # type: ignore[no-any-return]


def _run(
    function: Any, options: Names, as_json: bool, quiet: bool, verbose: bool, **values: Any
) -> None:
    if as_json and quiet:
        raise UsageError("--json and --quiet contradict each other; give one of them")
    terminal = Terminal(as_json=as_json, quiet=quiet, verbose=verbose)
    if options:
        values["options"] = {name: values.pop(name) for name in options}
    try:
        function(terminal, **values)
    except KeyboardInterrupt as error:  # typer would print an empty line
        terminal.close()
        raise typer.Exit(tell(error)) from None
    finally:
        terminal.close()
