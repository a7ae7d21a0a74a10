"""The summary of a merge, which several commands print."""

from __future__ import annotations

from typing import Any

from clipmerge.cli._terminal import Terminal


def show_merge(terminal: Terminal, record: dict[str, Any], last_line: str) -> None:
    """Print the result of a merge.

    Args:
        terminal: Where to.
        record: As in ``clipmerge.json``.
        last_line: For people: where the output is.
    """
    from clipmerge.report.page import summary_table

    terminal.result(record, lambda: summary_table(record))
    terminal.show(last_line)


def pushed(published: dict[str, Any]) -> str:
    """Say in a line what became of a push.

    Args:
        published: The fields of `clipmerge.publish.push.Published`.
    """
    if not published["changed"]:
        return f"{published['url']} holds exactly this already: no commit was made"
    return f"Published {published['pull_request'] or published['url']} at {published['commit']}"
