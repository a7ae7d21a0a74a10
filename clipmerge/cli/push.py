"""`clipmerge push`: flags and output."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from clipmerge.cli._ending import reporting_errors
from clipmerge.cli._options import Folder, Output
from clipmerge.cli._summary import pushed
from clipmerge.cli._terminal import Format, Terminal
from clipmerge.errors import noting


@reporting_errors
def push_command(
    folder: Folder,
    repo_id: Annotated[str, typer.Argument(help="ORG/NAME on the Hub; created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to; created if missing.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    license: Annotated[str | None, typer.Option(help="The licence, if the sources' differ.")] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="JSON of evaluate or sweep, whose accuracies go into the card; may be repeated."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Replace other contents, or a card edited on the Hub.")] = False,
    fmt: Output = Format.human,
) -> None:
    """Publish an output folder on the Hugging Face Hub."""
    terminal = Terminal(fmt)
    from clipmerge.api.push import push

    published = asdict(
        push(
            folder,
            repo_id,
            private=private,
            revision=revision,
            create_pr=create_pr,
            message=message,
            license=license,
            yes=yes,
            evaluations=evaluation or (),
            progress=terminal,
        )
    )
    outcome = pushed(published)
    with noting(outcome):
        terminal.result(published, lambda: outcome)
