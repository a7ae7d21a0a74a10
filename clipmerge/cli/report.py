"""`clipmerge report`: flags and output."""

from __future__ import annotations

from clipmerge.cli._ending import reporting_errors
from clipmerge.cli._options import Folder, Output, Verbose
from clipmerge.cli._summary import show_merge
from clipmerge.cli._terminal import Format, Terminal


@reporting_errors
def report_command(folder: Folder, fmt: Output = Format.human, verbose: Verbose = False) -> None:
    """Print the summary of a merge again."""
    terminal = Terminal(fmt, verbose=verbose)
    from clipmerge.api.report import report

    show_merge(terminal, report(folder), f"Full report: {folder / 'report.html'}", timed=False)
