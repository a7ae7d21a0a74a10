"""`clipmerge push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipmerge.cli._terminal import Terminal
from clipmerge.cli.app import command
from clipmerge.options import License, Private


@command
def push_command(
    terminal: Terminal,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder written by merge or apply.")
    ],
    repo_id: Annotated[
        str,
        typer.Argument(
            metavar="REPO_ID", help="ORG/NAME on the Hub; created if it does not exist."
        ),
    ],
    private: Private = False,
    license: License = None,
) -> None:
    """Publish an output folder on the Hugging Face Hub."""
    from clipmerge.publish.push import push

    published = push(folder, repo_id, private=private, license=license, progress=terminal)
    terminal.print_result(
        published.model_dump(), lambda: f"Published {published.url} at {published.commit}"
    )
