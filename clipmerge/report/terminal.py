"""Results of a merge or a sweep in a few lines for the terminal. The HTML page has the details."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clipmerge.errors import shorten
from clipmerge.options import with_flags
from clipmerge.planning.record import Record
from clipmerge.report.sweep import best_name, sweep_sentence, sweep_table
from clipmerge.report.wording import decision_sentence, unjudged_sentence, verdict_table
from clipmerge.types import Json


def summary(record: Record, *, verbose: bool = False) -> RenderableType:
    """Return the summary of a merge: its verdict, or else its decision; with ``verbose`` both."""
    lines: list[RenderableType] = []
    if record.verdict:
        advice, colon, why = with_flags(record.verdict.sentence).partition(":")
        sentence = Text.assemble((advice + colon, "bold"), why)
        lines += [sentence, render_table(*verdict_table(record.verdict))]
    if verbose or not record.verdict:
        measured = record.measured if verbose else None
        lines.append(Text(decision_sentence(record.plan, measured)))
    if not record.verdict:
        lines.append(Text(with_flags(unjudged_sentence(record.plan))))
    if record.plan.stragglers:
        lines.append(Text(f"Stragglers: {shorten(record.plan.stragglers)}."))
    return Group(*lines)


def sweep_summary(record: Json) -> RenderableType:
    """Return the summary of a sweep: its answer, and a table with about six of the alphas."""
    sentence = Text(with_flags(sweep_sentence(record)), style="bold")
    heads, rows = sweep_table(record)
    best = best_name(record)
    last = len(record["curve"]) - 1
    step = max(1, last // 5)
    shown = [row for at, row in enumerate(rows) if at >= last or at % step == 0 or row[0] == best]
    return Group(sentence, render_table(heads, shown, bold=best))


def render_table(
    heads: Iterable[str], rows: Iterable[Iterable[str]], *, words: int = 1, bold: str = ""
) -> Table:
    """Make a table without lines. The first ``words`` columns are text, the others numbers. The row
    named ``bold`` is bold.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for at, head in enumerate(heads):
        if at < words:
            table.add_column(Text(head), overflow="fold")
        else:
            table.add_column(Text(head), justify="right", no_wrap=True)
    for name, *cells in rows:
        style = "bold" if bold and name == bold else None
        table.add_row(*map(Text, [name, *cells]), style=style)
    return table
