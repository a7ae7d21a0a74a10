"""The summary of a merge, which several commands print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipmerge.cli._terminal import Terminal

if TYPE_CHECKING:
    from clipmerge.output.record import MergeRecord


def show_merge(
    terminal: Terminal,
    record: MergeRecord | None,
    last_line: str,
    *,
    published: dict[str, Any] | None = None,
    timed: bool = True,
) -> None:
    """Print the result of a merge, and how long it took if ``timed``."""
    from clipmerge.report.terminal import summary
    from clipmerge.report.text import record_json

    if record is None:
        return
    data = record_json(record) | ({"published": published} if published else {})
    terminal.result(data, lambda: summary(record, verbose=terminal.verbose))
    (terminal.end if timed else terminal.show)(last_line)


def pushed(published: dict[str, Any]) -> str:
    """Describe the result of a push in one line."""
    if not published["changed"]:
        return f"{published['url']} is already up to date: no commit was made"
    return f"Published {published['pull_request'] or published['url']} at {published['commit']}"
