"""`clipmerge recipes`: list, show and copy the recipes."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from clipmerge.cli._ending import echo, preparing, reporting_errors
from clipmerge.cli._help import complete_recipe, examples
from clipmerge.cli._options import Output, list_by_default
from clipmerge.cli._terminal import Format
from clipmerge.errors import OutputError

recipes_app = typer.Typer(
    help="List, show and copy the recipes.", invoke_without_command=True, epilog=examples("recipes")
)
# A width that no terminal has: from there on sentences are not wrapped, so that a pipe gets one line per recipe.
_WIDEST = 10_000
_Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a recipe.", autocompletion=complete_recipe)]


@recipes_app.callback()
@preparing
def _recipes(context: typer.Context, fmt: Output = Format.human) -> None:
    list_by_default(context, list_recipes, fmt)


@recipes_app.command("list")
@reporting_errors
def list_recipes(fmt: Output = Format.human) -> None:
    """List the recipes, one per line."""
    import json

    from clipmerge.planning.recipe import recipe_names, recipe_text

    about = {name: _about(recipe_text(name)) for name in recipe_names()}
    if fmt is Format.json:
        echo(json.dumps({"recipes": about}, indent=2))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDEST
    for name, text in about.items():
        indent = " " * 19
        lines = textwrap.wrap(text, max(40, width), initial_indent=f"{name:18} ", subsequent_indent=indent)
        echo("\n".join(lines) if width < _WIDEST else f"{name:18} {text}")


def _about(recipe: str) -> str:
    """The first sentence of a recipe's comments, however many lines it takes."""
    comments = itertools.takewhile(lambda line: line.startswith("#"), recipe.splitlines())
    text = " ".join(itertools.takewhile(bool, (line.lstrip("# ") for line in comments)))
    end = re.search(r"\.(?= |$)", text)
    return text[: end.end()] if end else text


@recipes_app.command("show")
@reporting_errors
def show_recipe(name: _Name) -> None:
    """Print a recipe with its comments."""
    from clipmerge.planning.recipe import recipe_text

    echo(recipe_text(name), nl=False)


@recipes_app.command("copy")
@reporting_errors
def copy_recipe(
    name: _Name,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="File to write; ./NAME.yaml by default.")] = None,
) -> None:
    """Copy a recipe to a file for editing."""
    from clipmerge.planning.recipe import recipe_text

    text = recipe_text(name)
    target = file or Path(f"{name}.yaml")
    if target.exists():
        raise OutputError(f"{target}: already exists; give another file")
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error}); give another file") from None
    echo(f"Wrote {target}; run it with --recipe {target}")
