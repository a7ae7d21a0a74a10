"""The command line: all commands in one program.

A command's file is imported when that command is used, so `clipmerge --help` imports none of them.
Torch and transformers are imported inside commands.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from clipmerge.cli._ending import tell
from clipmerge.cli._help import GroupedHelp, examples
from clipmerge.errors import UsageError

#: Every command in the order of ``--help``, with the first line of its own help.
COMMANDS = {
    "merge": "Measure, decide, merge and write.",
    "plan": "Measure and decide like merge, and write the plan.",
    "apply": "Apply a plan: writes the same bytes as merge.",
    "inspect": "List layers, how far each moved, and mismatches.",
    "evaluate": "Measure accuracy and retrieval recall, one row per source.",
    "demo": "Merge two small CLIPs that come with clipmerge, and compare.",
    "sweep": "Compare recipes with the alpha curve.",
    "push": "Publish an output folder on the Hugging Face Hub.",
    "recipes": "List, show and copy the recipes.",
}
# Commands that have subcommands.
_GROUPS = ("recipes",)


class _Commands(TyperGroup):
    """Knows only the name and the first line of a command until that command is used."""

    def resolve_command(self, context: Any, words: list[str]) -> Any:
        """Import the command that the words name."""
        # `Path.exists` raises an error for a long word
        if self.get_command(context, words[0]) is None and os.path.exists(words[0]):  # noqa: PTH110
            context.fail(f"No such command '{words[0]}'. Did you mean `clipmerge merge ...`?")
        name, command, rest = super().resolve_command(context, words)
        return name, command and _imported(str(name)), rest


def _imported(name: str) -> Any:
    """Make a command or a group of commands from its file with typer."""
    one = typer.Typer(rich_markup_mode=None)
    if name in _GROUPS:
        one.add_typer(getattr(import_module(f"clipmerge.cli.{name}"), f"{name}_app"), name=name)
    else:
        one.command(name, cls=GroupedHelp, epilog=examples(name))(_function(name))
    return get_group(one).commands[name]


def _function(name: str) -> Callable[..., None]:
    function: Callable[..., None] = getattr(
        import_module(f"clipmerge.cli.{name}"), f"{name}_command"
    )
    return function


app = typer.Typer(
    name="clipmerge",
    cls=_Commands,
    help="Make a fine-tuned CLIP robust again by merging it with its zero-shot self.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    epilog=examples(""),
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


for _name, _first_line in COMMANDS.items():
    app.command(_name, help=_first_line)(lambda: None)
