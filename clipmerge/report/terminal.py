"""The summary of a merge on a terminal: the effect and what was decided; report and card list
the layers.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clipmerge.config import with_flags
from clipmerge.errors import counted
from clipmerge.output.record import MergeRecord
from clipmerge.report.text import (
    EXPLANATION,
    HEADS,
    answer_text,
    effect_facts,
    headline,
    learned_text,
    other_task_rows,
    reason_text,
    text_of,
    texts_of,
    unmeasured_text,
)

# stragglers that are listed
_NAMED = 3


def summary(record: MergeRecord, *, verbose: bool = False) -> RenderableType:
    """Summarise a merge in a few lines; of learned coefficients only the verbose form repeats the
    whole verdict.
    """
    images = record.calibration
    decision = record.decision
    lines = [headline(record), *_stragglers(record)]
    learned = decision is not None and decision.kind in ("learned", "learned-sparse")
    if images is not None and learned and not verbose:
        lines = learned_text(record, images.images)
    if images is not None and images.unlabelled:
        lines.append(images.unlabelled.sentence)
    return Group(*_effect_lines(record), *_other_task_lines(record), *map(Text, lines))


def _stragglers(record: MergeRecord) -> list[str]:
    """The first stragglers, with their settings and the reason."""
    stragglers = record.found_stragglers
    lines = []
    for name in stragglers[:_NAMED]:
        layer = record.layers[name]
        mask = f", mask {layer.mask}" if layer.mask else ""
        lines.append(
            f"{name}: alpha {layer.alpha:.3g}, density {layer.effective_density:.3g}{mask};"
            f" {text_of(layer.reason) if layer.reason else ''}".rstrip()
        )
    more = counted(len(stragglers) - _NAMED, "more straggler", "more stragglers")
    return [*lines, *([f"and {more}"] if len(stragglers) > _NAMED else [])]


def _effect_lines(record: MergeRecord) -> list[Text]:
    """The measured effect of the merge, which users look for first."""
    if record.effect is None:
        return [Text(with_flags(unmeasured_text(record)), style="dim")]
    return [
        Text(answer_text(record.effect), style="bold"),
        *(
            Text(f"Warning: {with_flags(text)}", style="bold yellow")
            for text in texts_of(record.effect.warnings)
        ),
        Text(with_flags(reason_text(record.effect))),
        Text(effect_facts(record.effect), style="dim"),
    ]


def _other_task_lines(record: MergeRecord) -> list[Table | Text]:
    """Tasks that the model was not fine-tuned for."""
    if not record.other_tasks:
        return []
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for index, head in enumerate(("other tasks", *HEADS)):
        table.add_column(head, justify="left" if index < 2 else "right", no_wrap=index > 0)
    for row in other_task_rows(record.other_tasks):
        table.add_row(*map(Text, row))
    return [Text(), table, Text(EXPLANATION, style="dim")]
