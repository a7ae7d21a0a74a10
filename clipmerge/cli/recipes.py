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

from clipmerge.cli._help import complete_recipe
from clipmerge.cli._options import command, command_group
from clipmerge.cli._terminal import Terminal
from clipmerge.errors import OutputError
from clipmerge.files.paths import local_path, recipe_files
from clipmerge.files.staging import staged_files

recipes_app = command_group("recipes", "List, show and copy the recipes.")
# A width that no terminal has: from there on sentences are not wrapped, so that a pipe gets one
# line per recipe.
_WIDEST = 10_000
# The others follow by name.
_RECOMMENDED = ("auto", "wise-ft", "straggler-sparse", "lines", "monosoup")
_Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a recipe.", autocompletion=complete_recipe)
]


@recipes_app.command("list")
@command(verbose=False)
def list_recipes(terminal: Terminal) -> None:
    """List the recipes, the recommended ones first."""
    from clipmerge.planning.recipe import recipe_text

    texts = {name: recipe_text(name) for name in (*_RECOMMENDED, *recipe_files())}
    about = {name: _first_sentence(text) for name, text in texts.items()}
    images = {
        name: re.search(r"^measure:", text, re.MULTILINE) is not None
        for name, text in texts.items()
    }
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDEST
    column = max(map(len, about)) + 2
    lines = [f"{'recipe':{column}}images  what it does"]
    for name, text in about.items():
        first = f"{name:{column}}{'needed' if images[name] else 'no':8}"
        indent = " " * len(first)
        about_it = text or "(its file begins with no comment)"
        lines += textwrap.wrap(
            about_it, max(40, width), initial_indent=first, subsequent_indent=indent
        )
    terminal.result({"recipes": about, "needs_images": images}, lambda: "\n".join(lines))


def _first_sentence(recipe: str) -> str:
    """The first sentence of a recipe's comments, however many lines it takes."""
    comments = itertools.takewhile(lambda line: line.startswith("#"), recipe.splitlines())
    text = " ".join(itertools.takewhile(bool, (line.lstrip("# ") for line in comments)))
    end = re.search(r"\.(?= |$)", text)
    return text[: end.end()] if end else text


@recipes_app.command("show")
@command(verbose=False)
def show_recipe(terminal: Terminal, name: _Name) -> None:
    """Print a recipe with its comments; as JSON, its settings."""
    from clipmerge.planning.recipe import load_recipe, recipe_text

    text = recipe_text(name)
    terminal.result(load_recipe(name).model_dump(mode="json"), lambda: text.rstrip())


@recipes_app.command("copy")
def copy_recipe(
    name: _Name,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="File to write; ./NAME.yaml by default.")
    ] = None,
) -> None:
    """Copy a recipe to a file for editing."""
    from clipmerge.planning.recipe import recipe_text

    text = recipe_text(name)
    target = local_path(file or f"{name}.yaml")
    if target.exists():
        raise OutputError(f"{target}: already exists; give another file")
    with staged_files(target) as folder:
        (folder / target.name).write_text(text, encoding="utf-8")
    typer.echo(f"Wrote {target}; run it with --recipe {target}")
