"""The result of a merge and of a sweep on a terminal: few lines; the page has the rest."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clipmerge.errors import shorten
from clipmerge.options import with_flags
from clipmerge.planning.record import Record
from clipmerge.report.sweep import sweep_sentence, sweep_table
from clipmerge.report.wording import decision_sentence, verdict_table
from clipmerge.types import Json


def summary(record: Record, *, verbose: bool = False) -> RenderableType:
    """The verdict, or without one what was decided; both and why if ``verbose``."""
    lines: list[RenderableType] = []
    if record.verdict:
        advice, colon, why = with_flags(record.verdict.sentence).partition(":")
        sentence = Text.assemble((advice + colon, "bold"), why)
        lines += [sentence, _render_table(*verdict_table(record.verdict))]
    if verbose or not record.verdict:
        measured = record.measured if verbose else None
        lines.append(Text(decision_sentence(record.plan, measured)))
    if record.plan.stragglers:
        lines.append(Text(f"Stragglers: {shorten(record.plan.stragglers)}."))
    return Group(*lines)


def sweep_summary(record: Json) -> RenderableType:
    """The answer of a sweep, and its table."""
    return Group(Text(sweep_sentence(record), style="bold"), _render_table(*sweep_table(record)))


def _render_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for number, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if number else "left", no_wrap=number > 0)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
