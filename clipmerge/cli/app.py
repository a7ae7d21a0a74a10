"""The command line: all commands in one program.

A command's file is imported when that command is used, so `clipmerge --help` imports none of them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup
from typer.main import get_command

from clipmerge.cli._terminal import Terminal, report_error
from clipmerge.distributed import watch_processes
from clipmerge.errors import UsageError
from clipmerge.files import recipe_files

#: Every command in the order of ``--help``: its file, and what it does.
COMMANDS = {
    "merge": ("merge", "Measure, decide, merge, judge and write."),
    "plan": ("merge", "Measure and decide like merge, and write the plan."),
    "apply": ("merge", "Apply a plan: writes the same bytes as merge."),
    "inspect": ("evaluate", "List layers, how far each moved, how sharp each is."),
    "evaluate": ("evaluate", "Measure accuracy and retrieval recall, one row per source."),
    "sweep": ("evaluate", "Compare recipes with the alpha curve."),
    "push": ("push", "Publish an output folder on the Hugging Face Hub."),
    "recipes": ("recipes", "List, show and copy the recipes."),
    "demo": ("demo", "Merge two small CLIPs that come with clipmerge, and compare."),
}
_START = "Start with: clipmerge merge zeroshot finetuned --data val --output merged"
_RARE = "Flags that are rarely needed: docs/reference/command-line.md"


def complete_recipe(incomplete: str) -> list[str]:
    """Complete a recipe: a shipped one, or a YAML file here."""
    folder, slash, _ = incomplete.rpartition("/")
    beginning = folder + slash
    names = list(recipe_files())
    for file in sorted(Path(beginning or ".").glob("*.y*ml")):
        names.append(f"{beginning}{file.name}")
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
_EVERYWHERE = [
    inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option(*flags, help=about)],
    )
    for name, flags, about in (
        ("as_json", ["--json"], "Print one JSON object."),
        ("quiet", ["--quiet", "-q"], "Print nothing but warnings and errors."),
        ("verbose", ["--verbose", "-v"], "Print each stage, and warnings of libraries."),
    )
]


class _Commands(TyperGroup):
    """Knows only the name and the first line of a command until that command is used."""

    def resolve_command(self, context: Any, words: list[str]) -> Any:
        """Make the command that the words name, or a group of commands, from its file."""
        name, stub, rest = super().resolve_command(context, words)
        if stub is None:
            return name, stub, rest
        file, first_line = COMMANDS[str(name)]
        made = getattr(import_module(f"clipmerge.cli.{file}"), f"{name}_command")
        if not isinstance(made, typer.Typer):
            one = typer.Typer(add_completion=False, rich_markup_mode=None)
            one.command(name, help=first_line, epilog=_RARE)(made)
            made = one
        return name, get_command(made), rest


def command(function: Any) -> Callable[..., None]:
    """Make a command of a function of a terminal and of flags; its ``**options`` are the flags of
    the class that annotates them.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for each in inspect.signature(function).parameters.values():
        hint = hints[each.name]
        if each.kind is each.VAR_KEYWORD:
            from clipmerge.options import flags_of

            parameters += flags_of(hint.__metadata__[0])
        elif each.name != "terminal":
            parameters.append(each.replace(annotation=hint, kind=each.KEYWORD_ONLY))
    parameters += _EVERYWHERE
    defaults = {each.name: each.default for each in parameters}

    @functools.wraps(function)
    def run(as_json: bool, quiet: bool, verbose: bool, **values: Any) -> None:
        terminal = Terminal(as_json=as_json, quiet=quiet, verbose=verbose)
        # what was not given is left to the function, and no record tells of it
        given = {name: value for name, value in values.items() if value != defaults[name]}
        try:
            with closing(terminal):
                function(terminal, **given)
        except KeyboardInterrupt as error:  # typer would print an empty line
            raise typer.Exit(report_error(error)) from None

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


app = typer.Typer(
    name="clipmerge",
    cls=_Commands,
    help="Make a fine-tuned CLIP robust again by merging it with its zero-shot self.",
    epilog=_START,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


@app.callback()
def _print_version_or_help(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the versions of this and of its libraries.")
    ] = False,
) -> None:
    if version:
        _print_versions()
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(UsageError.exit_code)


def _print_versions() -> None:
    from importlib.metadata import version

    from clipmerge import __version__

    typer.echo(f"clipmerge {__version__}")
    for package in ("torch", "transformers", "accelerate", "huggingface_hub", "safetensors"):
        typer.echo(f"{package} {version(package)}")


# names for ``--help``; `_Commands` makes the command that is used
for _name, (_, _first_line) in COMMANDS.items():
    app.command(_name, help=_first_line)(lambda: None)


def main() -> int:
    """Run the command line, and return the exit code."""
    try:
        watch_processes()
        return app(prog_name="clipmerge", standalone_mode=False) or 0
    except Exception as error:
        return report_error(error)
