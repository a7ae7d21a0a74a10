"""`clipmerge data`: public data sets, class names and prompt templates by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from clipmerge.cli._options import command, command_group
from clipmerge.cli._terminal import Terminal
from clipmerge.types import Json

if TYPE_CHECKING:
    from rich.console import RenderableType

data_app = command_group("data", "Public data sets, class names and prompt templates by name.")


@data_app.command("list")
@command(verbose=False)
def list_data(terminal: Terminal) -> None:
    """List data sets, lists of class names and sets of templates."""
    from clipmerge.images.prompts import template_sets
    from clipmerge.images.registry import class_lists, known_sets

    record = {
        "data": {name: known.title for name, known in sorted(known_sets().items())},
        "classes": list(class_lists()),
        "templates": template_sets(),
    }
    terminal.result(record, lambda: _listing(record))


@data_app.command("show")
@command(verbose=False)
def show_data(
    terminal: Terminal,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of a data set, or of a set of templates.")
    ],
) -> None:
    """Print a data set's source, class names, templates, conventions and published figures."""
    from clipmerge.images.prompts import template_set, template_sets
    from clipmerge.images.registry import known_set

    if name in template_sets():
        templates = template_set(name)
        terminal.result({"name": name, "templates": templates}, lambda: "\n".join(templates))
        return
    known = known_set(name)
    record = {
        "name": name,
        **known.model_dump(mode="json", exclude={"rows", "classes", "templates"}),
        "address": known.address(),
        "class_names": list(known.class_names),
        "templates": list(known.prompts),
    }
    terminal.result(record, lambda: _description(record))


def _listing(record: Json) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    width = max(map(len, [*record["data"], *record["templates"]])) + 2
    lines = [f"{name:{width}}{title}" for name, title in record["data"].items()]
    lines += ["", "Templates (--template NAME):"]
    lines += [f"{name:{width}}{about}" for name, about in record["templates"].items()]
    lines += ["", "Class names (--classes NAME):", ", ".join(record["classes"])]
    return Group(*map(Text, lines))


def _description(record: Json) -> RenderableType:
    from rich.console import Group
    from rich.table import Column, Table
    from rich.text import Text

    facts = [
        (record["name"], record["title"]),
        ("source", record["address"]),
        ("splits", ", ".join(record["splits"])),
    ]
    counts = ", ".join(f"{split} {count:,}" for split, count in record["images"].items())
    names = record["class_names"]
    templates = record["templates"]
    from_repository = "read from the repository"
    if record["kind"] == "retrieval":
        facts.append(("captions", "each image has several; for recall, not for accuracy"))
        figures = {
            name: ", ".join(f"{k} {v:g}" for k, v in recalls.items())
            for name, recalls in record["recall"].items()
        }
    else:
        facts.append(("classes", f"{len(names)}, listed below" if names else from_repository))
        some = ", ".join(f"'{template}'" for template in templates[:3])
        shown = some if len(templates) < 4 else f"{len(templates)}, such as {some}"
        facts.append(("templates", shown if templates else from_repository))
        figures = {name: f"{value:g}%" for name, value in record["zeroshot"].items()}
    published = "; ".join(f"{name} {figure}" for name, figure in figures.items())
    facts += [("images", counts), ("published", published), ("note", record["note"])]
    columns = Column(style="dim", no_wrap=True), Column(overflow="fold")
    table = Table(*columns, box=None, show_header=False, pad_edge=False)
    for head, text in facts:
        if text:
            table.add_row(head, Text(text))
    return Group(table, *([Text(), Text(", ".join(names))] if names else []))
