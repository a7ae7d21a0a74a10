"""`clipmerge recipes`: list, show and copy the recipes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from clipmerge.cli._terminal import Terminal
from clipmerge.cli.app import GroupedCommand, command
from clipmerge.files import local_path, recipe_files

recipes_command = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    help="List, show and copy the recipes.",
)
# These recipes are listed first. `--all` lists all other recipes after them.
_RECOMMENDED = ("auto", "wise-ft", "straggler-sparse", "lines", "monosoup")
_Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a recipe.")]


@recipes_command.command("list", cls=GroupedCommand)
@command
def list_recipes(
    terminal: Terminal,
    every: Annotated[bool, typer.Option("--all", help="List all recipes.")] = False,
) -> None:
    """List the recommended recipes."""
    from clipmerge.planning.recipe import recipe_text

    others = [name for name in recipe_files() if name not in _RECOMMENDED]
    names = [*_RECOMMENDED, *others] if every else _RECOMMENDED
    texts = {name: recipe_text(name) for name in names}
    about = {name: _first_sentence(text) for name, text in texts.items()}
    images = {name: "\nmeasure:" in text for name, text in texts.items()}

    def table() -> Any:
        from clipmerge.report.terminal import render_table

        rows = [[name, "needed" if images[name] else "no", text] for name, text in about.items()]
        if not every:
            rows.append(["", "", f"({len(others)} others: clipmerge recipes list --all)"])
        return render_table(["recipe", "images", "what it does"], rows, words=3)

    terminal.print_result({"recipes": about, "needs_images": images}, table)


@recipes_command.callback()
def _list_by_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_recipes(every=False, as_json=False, quiet=False, verbose=False)


def _first_sentence(recipe: str) -> str:
    """Return the first sentence of a recipe's comments."""
    comments = " ".join(re.findall(r"^# ?(.*)", recipe, re.MULTILINE))
    return re.split(r"(?<=\.) ", comments)[0]


@recipes_command.command("show", cls=GroupedCommand)
@command
def show_recipe(terminal: Terminal, name: _Name) -> None:
    """Print a recipe with its comments; as JSON, its settings."""
    from clipmerge.planning.recipe import load_recipe, recipe_text

    text = recipe_text(name)
    terminal.print_result(load_recipe(name).model_dump(mode="json"), lambda: text.rstrip())


@recipes_command.command("copy", cls=GroupedCommand)
@command
def copy_recipe(
    terminal: Terminal,
    name: _Name,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="File to write; ./NAME.yaml by default.")
    ] = None,
) -> None:
    """Copy a recipe to a file for editing."""
    from clipmerge.planning.recipe import recipe_text

    text = recipe_text(name)
    target = local_path(file or f"{name}.yaml")
    with target.open("x", encoding="utf-8") as new_file:
        new_file.write(text)
    terminal.print_result(
        {"file": str(target)}, lambda: f"Wrote {target}; run it with --recipe {target}"
    )
