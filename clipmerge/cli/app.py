"""The command line: all commands in one program.

A command's file is imported when that command is used, so `clipmerge --help` imports none of them.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from clipmerge.cli._terminal import tell
from clipmerge.errors import UsageError

#: Every command in the order of ``--help``: its file, and what it does.
COMMANDS = {
    "merge": ("merge", "Measure, decide, merge, judge and write."),
    "plan": ("merge", "Measure and decide like merge, and write the plan."),
    "apply": ("merge", "Apply a plan: writes the same bytes as merge."),
    "inspect": ("evaluate", "List layers, how far each moved, and mismatches."),
    "evaluate": ("evaluate", "Measure accuracy and retrieval recall, one row per source."),
    "sweep": ("evaluate", "Compare recipes with the alpha curve."),
    "push": ("push", "Publish an output folder on the Hugging Face Hub."),
    "recipes": ("recipes", "List, show and copy the recipes."),
    "demo": ("demo", "Merge two small CLIPs that come with clipmerge, and compare."),
}
_START = "Start with: clipmerge merge zeroshot finetuned --data val --output merged"
_RARE = "Flags that are rarely needed: docs/reference/command-line.md"


class _Commands(TyperGroup):
    """Knows only the name and the first line of a command until that command is used."""

    def resolve_command(self, context: Any, words: list[str]) -> Any:
        """Import the command that the words name."""
        if self.get_command(context, words[0]) is None and Path(words[0]).exists():
            context.fail(f"No such command '{words[0]}'. Did you mean `clipmerge merge ...`?")
        name, command, rest = super().resolve_command(context, words)
        return name, command and _imported(str(name)), rest


def _imported(name: str) -> Any:
    """Make a command or a group of commands from its file with typer."""
    file, help_line = COMMANDS[name]
    function = getattr(import_module(f"clipmerge.cli.{file}"), f"{name}_command")
    one = typer.Typer(rich_markup_mode=None)
    if isinstance(function, typer.Typer):
        one.add_typer(function, name=name, help=help_line)
    else:
        one.command(name, help=help_line, epilog=_RARE)(function)
    return get_group(one).commands[name]


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


def main() -> int:
    """Run the command line, and return the exit code."""
    try:
        return app(prog_name="clipmerge", standalone_mode=False) or 0
    except Exception as error:
        return tell(error)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        from clipmerge import __version__

        typer.echo(f"clipmerge {__version__}")
        for package in ("torch", "transformers", "accelerate", "huggingface_hub", "safetensors"):
            typer.echo(f"{package} {version(package)}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="Print the versions of this and of its libraries.",
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(UsageError.exit_code)


for _name, (_, _first_line) in COMMANDS.items():
    app.command(_name, help=_first_line)(lambda: None)
