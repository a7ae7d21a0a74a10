"""Results for notebooks and for `print`: the answer, the accuracies and the picture."""

from __future__ import annotations

import io
from typing import Any

from clipmerge.planning.record import Record, Verdict
from clipmerge.report.pages import merge_picture, render
from clipmerge.report.sweep import sweep_sentence, sweep_table
from clipmerge.report.wording import decision_sentence, verdict_table
from clipmerge.types import Json

_LAYERS = "`to_frame()` lists the layers."


class ShownVerdict(Verdict):
    """A verdict that prints as its sentence and its table."""

    def __str__(self) -> str:
        from rich.console import Console

        from clipmerge.report.terminal import render_table

        console = Console(file=io.StringIO(), width=10_000, force_jupyter=False)
        console.print(render_table(*verdict_table(self)))
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        return "\n".join([self.sentence, *(line.rstrip() for line in lines)])

    def _repr_html_(self) -> str:
        return _render(self.sentence, table=verdict_table(self))


def shown(verdict: Verdict) -> ShownVerdict:
    """Return a copy of a verdict that prints as its sentence and its table."""
    return ShownVerdict.model_construct(**dict(verdict))


def merge_html(record: Record) -> str:
    """Return a merge as HTML for a notebook: its verdict, or else its decision, and its picture."""
    sentence, table = decision_sentence(record.plan, record.measured), None
    if record.verdict:
        sentence, table = record.verdict.sentence, verdict_table(record.verdict)
    return _render(sentence, table=table, picture=merge_picture(record), last=_LAYERS)


def sweep_html(record: Json) -> str:
    """Return a sweep as HTML for a notebook: its answer, its table and its picture."""
    from clipmerge.report.figures import png, sweep_figure

    return _render(
        sweep_sentence(record), table=sweep_table(record), picture=png(sweep_figure(record))
    )


def _render(sentence: str, **values: Any) -> str:
    advice, colon, why = sentence.partition(":")
    return render(
        "notebook.html.j2",
        {"picture": None, "last": "", "advice": advice + colon, "why": why.strip(), **values},
    )
