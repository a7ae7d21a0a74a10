"""The program ``clipmerge``, and a table of its commands.

The file of a command is imported when the command is used, so `clipmerge --help` imports none.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from clipmerge.cli._terminal import Terminal, report_error
from clipmerge.distributed import watch_processes
from clipmerge.errors import UsageError

#: File and summary of each command, in the order of ``--help``.
COMMANDS = {
    "merge": ("merge", "Measure, decide, merge, judge and write."),
    "plan": ("merge", "Measure and decide like merge, and write the plan."),
    "apply": ("merge", "Apply a plan, and write the same bytes as merge."),
    "inspect": ("evaluate", "List layers: how far each moved, and how sharp it is."),
    "evaluate": ("evaluate", "Measure accuracy and retrieval recall, one row per source."),
    "sweep": ("evaluate", "Compare recipes with the alpha curve."),
    "push": ("push", "Publish an output folder on the Hugging Face Hub."),
    "recipes": ("recipes", "List, show and copy the recipes."),
    "demo": ("demo", "Merge two small CLIPs that come with clipmerge, and compare."),
}
_START = (
    "Start with: clipmerge demo. Your own pair: clipmerge merge --help. Documentation:"
    " https://github.com/OWNER/clipmerge"
)


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
        rich_help_panel="Decide",
        help="Name or YAML file; by default auto with --data and without --alpha, else wise-ft.",
    ),
]
Output = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="PATH", rich_help_panel="Write", help="Path to write."),
]


class GroupedCommand(TyperCommand):
    """A command whose ``--help`` lists flags in groups."""

    def format_options(self, context: Any, formatter: Any) -> None:
        """Write a section for each group of flags."""
        from clipmerge.options import HELP_GROUPS

        groups: dict[str, list[tuple[str, str]]] = {title: [] for title in HELP_GROUPS}
        for parameter in self.get_params(context):
            flags, about = parameter.get_help_record(context)  # type: ignore[misc]
            group = getattr(parameter, "rich_help_panel", None) or "Run"
            if parameter.param_type_name == "argument":
                group = "What"
                flags = parameter.metavar or ""  # typer's text has the argument's type too
            groups[group].append((flags.removeprefix(" / "), about))
        for title, rows in groups.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class _Commands(TyperGroup):
    """A group that imports the file of a command when the command is used."""

    def resolve_command(self, context: Any, words: list[str]) -> Any:
        """Import the file of the command, or group of commands, that the first word names."""
        name, stub, rest = super().resolve_command(context, words)
        if stub is None:
            return name, stub, rest
        file, summary = COMMANDS[str(name)]
        made = getattr(import_module(f"clipmerge.cli.{file}"), f"{name}_command")
        if not isinstance(made, typer.Typer):
            one = typer.Typer(add_completion=False, rich_markup_mode=None)
            one.command(name, cls=GroupedCommand, help=summary)(made)
            made = one
        return name, get_command(made), rest


def command(function: Any) -> Callable[..., None]:
    """Turn a function into a command of typer. The function's first parameter gets the `Terminal`,
    and its other parameters become arguments and flags.

    ``**options`` is annotated with a class of options. Each field of the class becomes a flag.
    """
    from clipmerge.options import typer_parameters

    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    parameters = []
    for each in own:
        if each.kind is each.VAR_KEYWORD:
            parameters += typer_parameters(each.annotation.__metadata__[0])
        else:
            parameters.append(each.replace(kind=each.KEYWORD_ONLY))
    of_terminal = inspect.signature(Terminal, eval_str=True).parameters
    parameters += of_terminal.values()
    defaults = {each.name: each.default for each in parameters}

    @functools.wraps(function)
    def run(**values: Any) -> None:
        printing = {name: values.pop(name) for name in of_terminal}
        # records quote only options that were given
        given = {name: value for name, value in values.items() if value != defaults[name]}
        try:
            with closing(Terminal(**printing)) as terminal:
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
    add_completion=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


@app.callback()
def _print_version_or_help(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the versions of clipmerge and its libraries.")
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


# names and summaries for ``--help``; `_Commands` imports the command itself
for _name, (_, _first_line) in COMMANDS.items():
    app.command(_name, help=_first_line)(lambda: None)


def main() -> int:
    """Run the command line, and return the exit code."""
    try:
        watch_processes()
        return app(prog_name="clipmerge", standalone_mode=False) or 0
    except Exception as error:
        return report_error(error)
