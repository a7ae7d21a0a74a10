"""`clipmerge report`: flags and output."""

from __future__ import annotations

from clipmerge.cli._options import Folder, command
from clipmerge.cli._terminal import Terminal, show_merge


@command()
def report_command(terminal: Terminal, folder: Folder) -> None:
    """Print the summary of a merge again."""
    from clipmerge.output.record import read_output

    show_merge(terminal, read_output(folder), f"Full report: {folder / 'report.html'}", timed=False)
