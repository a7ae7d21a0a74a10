"""What can be done with an output folder, `clipmerge push` and `clipmerge report`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from clipmerge.cli._options import Output
from clipmerge.cli._terminal import Format, Terminal, noting, reporting_errors
from clipmerge.errors import UsageError, shorten

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that merge or apply wrote.")]


def show_merge(terminal: Terminal, record: dict[str, Any], last_line: str) -> None:
    """Print what came of a merge.

    Args:
        terminal: Where to.
        record: As in ``clipmerge.json``.
        last_line: Where it is, for people.
    """
    from clipmerge.report.page import summary_table

    terminal.result(record, lambda: summary_table(record))
    terminal.show(last_line)


def check_push(repo_id: str, output: Path | None, *, private: bool) -> None:
    """Refuse a push that is bound to fail, before minutes of measuring.

    Args:
        repo_id: ``org/name``.
        output: The folder that will be pushed; ``None`` in a dry run.
        private: Whether the repository is to be private.

    Raises:
        UsageError: If there will be nothing to push, or the name is none.
        HubError: If there is no token, or it may not write.
    """
    from clipmerge.publish.push import check_access

    if output is None:
        raise UsageError("--push needs --output: a dry run writes nothing that could be pushed")
    check_access(output, repo_id, private=private)


def publish(folder: Path, repo_id: str, terminal: Terminal, **options: Any) -> tuple[dict[str, Any], str]:
    """Push a folder and say what became of it.

    Args:
        folder: A whole output.
        repo_id: ``org/name``.
        terminal: Where to report.
        **options: As `clipmerge.publish.push.push` takes them.

    Returns:
        A JSON-ready record of the push, and a line for people.

    Raises:
        ClipmergeError: If it fails; the message says what was published and how to go on.
    """
    from clipmerge.publish.push import push
    from clipmerge.publish.repository import Push

    terminal.stage("publish")
    again = Push(folder, repo_id, **options).command
    with noting(f"whether {repo_id} was published is not known: `{again}` finds out and goes on"):
        published = push(folder, repo_id, **options)
    if published.left_behind:
        terminal.say(f"{shorten(published.left_behind)} left behind in {folder}: no part of what the merge wrote")
    if not published.changed:
        said = f"{published.url} holds exactly this already: no commit was made"
    else:
        said = f"Published {published.pull_request or published.url} at {published.commit}"
    return asdict(published), said


@reporting_errors
def push_command(
    folder: Folder,
    repo_id: Annotated[str, typer.Argument(help="ORG/NAME on the Hub; created when it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to; created when missing.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    license: Annotated[str | None, typer.Option(help="The licence, where the sources' differ.")] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="JSON of evaluate or sweep: its accuracies go into the card; may be repeated."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Push over something else, or a card edited on the Hub.")] = False,
    fmt: Output = Format.human,
) -> None:
    """Publish an output folder on the Hugging Face Hub."""
    terminal = Terminal(fmt)
    record, said = publish(
        folder,
        repo_id,
        terminal,
        private=private,
        revision=revision,
        create_pr=create_pr,
        message=message,
        license=license,
        yes=yes,
        evaluations=tuple(evaluation or ()),
    )
    with noting(said):
        terminal.result(record, lambda: said)


@reporting_errors
def report_command(folder: Folder, fmt: Output = Format.human) -> None:
    """Print the summary of a merge again."""
    from clipmerge.publish.push import read_output
    from clipmerge.report.page import summary_table

    terminal = Terminal(fmt)
    record = read_output(folder)
    terminal.result(record, lambda: summary_table(record))
    terminal.show(f"The whole report: {folder / 'report.html'}")
