"""The command line: all commands put together. Torch and transformers are imported inside commands."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from clipmerge.cli._defaults import apply_defaults
from clipmerge.cli._ending import (
    Unprintable,
    fail,
    leave_it_to_the_main_process,
    prepare_streams,
    printing,
    reporting_errors,
)
from clipmerge.cli._help import examples
from clipmerge.cli.apply import apply_command
from clipmerge.cli.bench import bench_command
from clipmerge.cli.convert import convert_command
from clipmerge.cli.data import data_app
from clipmerge.cli.demo import demo_command
from clipmerge.cli.env import env_command
from clipmerge.cli.evaluate import evaluate_command
from clipmerge.cli.inspect import inspect_command
from clipmerge.cli.merge import merge_command
from clipmerge.cli.plan import plan_command
from clipmerge.cli.push import push_command
from clipmerge.cli.recipes import recipes_app
from clipmerge.cli.report import report_command
from clipmerge.cli.sweep import sweep_command
from clipmerge.errors import UsageError

app = typer.Typer(
    name="clipmerge",
    help="Make a fine-tuned CLIP robust again by merging it with its zero-shot self, layer by layer.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    epilog=examples(""),
)
# base class of all errors about flags, whether or not typer vendors its own click
_UsageException: Any = typer.BadParameter.__base__


def main() -> None:
    """Run the command line; errors in flags are one line too."""
    prepare_streams()
    try:
        code = _run()
    except SystemExit as end:  # raised by `fail`
        code = int(end.code or 0)
    _leave_group(code)
    raise SystemExit(code)


def _run() -> int:
    try:
        with printing():
            return app(prog_name="clipmerge", standalone_mode=False) or 0
    except typer.Abort:
        fail("interrupted; nothing was left behind", 130)
    except Unprintable as error:
        fail(str(error), 1)
    except _UsageException as error:
        leave_it_to_the_main_process()
        where = error.ctx.command_path if error.ctx else "clipmerge"
        fail(
            f"{error.format_message().replace('Value error, ', '').rstrip('.')}; see `{where} --help`",
            UsageError.exit_code,
        )


def _leave_group(code: int) -> None:
    """If torch.distributed is initialised, exit at once: its threads can abort the interpreter's own shutdown.

    One aborted worker makes the launcher end a run that had succeeded. Destroying the group first does not always help.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _version(value: bool) -> None:
    if value:
        from clipmerge import __version__

        typer.echo(f"clipmerge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(UsageError.exit_code)
    _take_defaults(context)


@reporting_errors
def _take_defaults(context: typer.Context) -> None:
    """Give the command its defaults from the environment and from files."""
    command = str(context.invoked_subcommand)
    if command in _DEFAULTS:
        flags = set(inspect.signature(_COMMANDS[command]).parameters) - _DEFAULTS[command]
        apply_defaults(context, flags)


# Commands whose flags may have defaults of the user's, and the flags of which that is not so.
_DEFAULTS: dict[str, set[str]] = {
    "merge": set(),
    "plan": set(),
    "evaluate": {"data"},  # named sources, of which there is no one default
    "sweep": {"recipe"},  # those that are to be compared
}
_COMMANDS: dict[str, Callable[..., None]] = {
    "merge": merge_command,
    "plan": plan_command,
    "apply": apply_command,
    "inspect": inspect_command,
    "evaluate": evaluate_command,
    "demo": demo_command,
    "sweep": sweep_command,
    "bench": bench_command,
    "convert": convert_command,
    "push": push_command,
    "report": report_command,
    "env": env_command,
}
for _name, _command in _COMMANDS.items():  # in the order of --help
    app.command(_name, epilog=examples(_name))(_command)
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")
