"""The summary of a merge on a terminal: the effect and what was decided; report and card list
the layers.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clipmerge.config import with_flags
from clipmerge.errors import counted
from clipmerge.output.record import Record
from clipmerge.report.text import (
    EXPLANATION,
    HEADS,
    answer_text,
    effect_facts,
    headline,
    learned_text,
    other_task_rows,
    reason_text,
    texts_of,
    unmeasured_text,
)

# stragglers that are listed
_NAMED = 3


def summary(record: Record, *, verbose: bool = False) -> RenderableType:
    """Summarise a merge in a few lines; of learned coefficients only the verbose form repeats the
    whole verdict.
    """
    images = record.calibration
    lines = [headline(record.plan, record.measured), *_stragglers(record)]
    if images is not None and record.measured.trace and not verbose:
        lines = learned_text(record, images.images)
    if images is not None and images.unlabelled:
        lines.append(images.unlabelled.sentence)
    return Group(*_effect_lines(record), *_other_task_lines(record), *map(Text, lines))


def _stragglers(record: Record) -> list[str]:
    """The first stragglers, with their settings and the reason."""
    stragglers = record.plan.stragglers
    lines = []
    for name in stragglers[:_NAMED]:
        layer = record.plan.layers[name]
        mask = f", mask {layer.mask}" if layer.mask else ""
        lines.append(
            f"{name}: alpha {layer.alpha:.3g}, density {layer.density:.3g}{mask};"
            f" {record.measured.reasons.get(name, '')}".rstrip()
        )
    more = counted(len(stragglers) - _NAMED, "more straggler", "more stragglers")
    return [*lines, *([f"and {more}"] if len(stragglers) > _NAMED else [])]


def _effect_lines(record: Record) -> list[Text]:
    """The measured effect of the merge, which users look for first."""
    if record.verdict is None:
        return [Text(with_flags(unmeasured_text(record)), style="dim")]
    return [
        Text(answer_text(record.verdict), style="bold"),
        *(
            Text(f"Warning: {with_flags(text)}", style="bold yellow")
            for text in texts_of(record.verdict.warnings)
        ),
        Text(with_flags(reason_text(record.verdict))),
        Text(effect_facts(record.verdict), style="dim"),
    ]


def _other_task_lines(record: Record) -> list[Table | Text]:
    """Tasks that the model was not fine-tuned for."""
    if not record.other_tasks:
        return []
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for index, head in enumerate(("other tasks", *HEADS)):
        table.add_column(head, justify="left" if index < 2 else "right", no_wrap=index > 0)
    for row in other_task_rows(record.other_tasks):
        table.add_row(*map(Text, row))
    return [Text(), table, Text(EXPLANATION, style="dim")]
