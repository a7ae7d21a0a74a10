"""`clipmerge push`: flags and output."""

from __future__ import annotations

from typing import Annotated, Unpack

import typer

from clipmerge.cli._options import Folder, command
from clipmerge.cli._terminal import Terminal, push_outcome
from clipmerge.config import PushOptions
from clipmerge.errors import adding_note


@command(PushOptions, verbose=False)
def push_command(
    terminal: Terminal,
    folder: Folder,
    repo_id: Annotated[
        str,
        typer.Argument(
            metavar="REPO_ID", help="ORG/NAME on the Hub; created if it does not exist."
        ),
    ],
    **options: Unpack[PushOptions],
) -> None:
    """Publish an output folder on the Hugging Face Hub."""
    from clipmerge.api.push import push

    published = push(folder, repo_id, **options).model_dump()
    outcome = push_outcome(published)
    with adding_note(outcome):
        terminal.result(published, lambda: outcome)
