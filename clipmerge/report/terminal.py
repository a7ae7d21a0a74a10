"""The summary of a merge on a terminal: the effect and what was decided; report and card list
the layers.
"""

from __future__ import annotations

import re

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clipmerge.errors import counted
from clipmerge.output.record import MergeRecord
from clipmerge.planning.effect_view import effect_facts, unmeasured
from clipmerge.planning.other_tasks import EXPLANATION, HEADS, other_task_rows

# stragglers that are listed
_NAMED = 3
# A verdict of methods that learn, with what it says before its numbers, and the factor of all
# coefficients; after overrides and edits of the plan a verdict has another form.
_LEARNED = re.compile(r"(?:(.*); )?[\d,]+ (?:learned )?coefficients(?: times (\S+))?; ")


def summary(record: MergeRecord, *, verbose: bool = False) -> RenderableType:
    """Summarise a merge in a few lines; of learned coefficients only the verbose form repeats the
    whole verdict.
    """
    images, learned = record.calibration, _LEARNED.match(record.headline)
    lines = [record.headline, *_stragglers(record)]
    if images is not None and learned and not verbose:
        lines = _learned(record, images.images, *learned.groups())
    if images is not None and images.unlabelled:
        lines.append(images.unlabelled.sentence)
    return Group(*_effect_lines(record), *_other_task_lines(record), *map(Text, lines))


def _learned(
    record: MergeRecord, images: int, stragglers: str | None, factor: str | None
) -> list[str]:
    """What was learned, or measured without learning, in a sentence."""
    where = f"on {images:,} of your images"
    sentence = f"How far each weight goes from zero-shot to fine-tuned was learned {where}"
    if record.choice and record.choice.alpha is not None:
        sentence = (
            f"Nothing learned {where} surely keeps the fine-tuned model's accuracy, so its weights"
            " were taken"
        )
    times = f", and multiplied by {factor}" if factor else ""
    return [f"{stragglers}."] * bool(stragglers) + [f"{sentence}{times} (-v says more)."]


def _stragglers(record: MergeRecord) -> list[str]:
    """The first stragglers, with their settings and the reason."""
    found = record.found_stragglers
    lines = []
    for name in found[:_NAMED]:
        layer = record.layers[name]
        mask = f", mask {layer.mask}" if layer.mask else ""
        lines.append(
            f"{name}: alpha {layer.alpha:.3g}, density {layer.effective_density:.3g}{mask};"
            f" {layer.reason}"
        )
    more = counted(len(found) - _NAMED, "more straggler", "more stragglers")
    return [*lines, *([f"and {more}"] if len(found) > _NAMED else [])]


def _effect_lines(record: MergeRecord) -> list[Text]:
    """The measured effect of the merge, which users look for first."""
    if record.effect is None:
        return [
            Text(
                unmeasured(with_images=record.calibration is not None, warnings=record.warnings),
                style="dim",
            )
        ]
    return [
        Text(record.effect.verdict, style="bold"),
        *(Text(f"Warning: {warning}", style="bold yellow") for warning in record.effect.warnings),
        Text(record.effect.reason),
        Text(effect_facts(record.effect), style="dim"),
    ]


def _other_task_lines(record: MergeRecord) -> list[Table | Text]:
    """Tasks that the model was not fine-tuned for."""
    if not record.other_tasks:
        return []
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for place, head in enumerate(("other tasks", *HEADS)):
        table.add_column(head, justify="left" if place < 2 else "right", no_wrap=place > 0)
    for row in other_task_rows(record.other_tasks):
        table.add_row(*map(Text, row))
    return [Text(), table, Text(EXPLANATION, style="dim")]
