"""The summary of a merge, which several commands print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipmerge.cli._terminal import Terminal

if TYPE_CHECKING:
    from clipmerge.output.record import MergeRecord


def show_merge(
    terminal: Terminal, record: MergeRecord | None, last_line: str, *, published: dict[str, Any] | None = None
) -> None:
    """Print the result of a merge."""
    from clipmerge.report.terminal import summary_table

    if record is None:
        return
    data = record.as_json() | ({"published": published} if published else {})
    terminal.result(data, lambda: summary_table(record, terminal.width))
    terminal.end(last_line)


def pushed(published: dict[str, Any]) -> str:
    """Describe the result of a push in one line."""
    if not published["changed"]:
        return f"{published['url']} is already up to date: no commit was made"
    return f"Published {published['pull_request'] or published['url']} at {published['commit']}"
