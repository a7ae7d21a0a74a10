"""The report of a merge: one HTML page, from the record alone.

First the effect of the merge and whether to use it, then why: what was learned or measured, layer
by layer. Nothing is measured or read here, and the same command gives the same page. There is no
section for what was not measured or looked for.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipmerge.hub.ids import dataset_repo, parse_dataset
from clipmerge.output.record import Record
from clipmerge.planning.measurements import StatisticAbout
from clipmerge.report.prose import render_page
from clipmerge.report.text import (
    advice_text,
    examples_text,
    inputs_text,
    record_texts,
    straggler_meaning,
    unmeasured_text,
)

if TYPE_CHECKING:
    from markupsafe import Markup

    from clipmerge.report.figures import Picture

#: Pictures beside the model card.
PATH_PICTURE, EXAMPLES_PICTURE = "path.png", "examples.png"

_CHECKS = {
    "barrier": "Barrier: loss at alpha 0.5 minus the endpoints' average",
    "loss_drop": "Loss drop: loss at alpha 1 minus loss at alpha 0",
}
# Statistics of learning, whose place the plan's own numbers take: overrides and edits come later.
_LEARNED = {"at_one", "straggler"}
# Colour of the answer, by what is recommended.
_TONES = {
    "use": "yes",
    "prefer-finetuned": "no",
    "prefer-zeroshot": "no",
    "check-names": "no",
    "check-models": "no",
}


def html_page(record: Record) -> str:
    """Render the whole report as one HTML page that loads nothing from the network."""
    effect = record.verdict
    columns = layer_columns(record)
    values = record_texts(record) | {
        "record": record,
        "inputs": inputs_text(record),
        "label": advice_text(effect) if effect else "Not measured",
        "tone": _TONES.get(effect.recommendation, "open") if effect else "open",
        "unmeasured": unmeasured_text(record),
        "pictures": _pictures(record),
        "examples": _examples(record),
        "columns": columns,
        "layers": [
            {
                "name": name,
                "is_straggler": name in record.plan.stragglers,
                "cells": [column.cell(name) for column in columns],
                "mask": layer.mask or "none",
                "reason": record.measured.reasons.get(name, ""),
            }
            for name, layer in record.plan.layers.items()
        ],
        "straggler_meaning": straggler_meaning(record),
        "check_titles": _CHECKS,
        "incomplete": [text for text in record.warnings if "layers' shares are off" in text],
        "command": repeat_command(record),
        "hashes": [
            (role, name, files[name] or "not hashed")
            for role, files in (
                *((role, model.files) for role, model in record.checkpoints),
                ("merged", record.files),
            )
            for name in sorted(files)
        ],
    }
    return render_page("report.html.j2", values)


def card_pictures(record: Record) -> dict[str, bytes]:
    """Draw the model card's pictures, as PNG by file name: the loss on the path, and examples."""
    examples = record.verdict and record.verdict.examples
    if record.measured.path is None and not examples:
        return {}
    from clipmerge.report.figures import examples_figure, figure_bytes, path_figure

    figures = {
        PATH_PICTURE: record.measured.path and path_figure(record.measured.path),
        EXAMPLES_PICTURE: examples_figure(record.verdict) if record.verdict and examples else None,
    }
    return {name: figure_bytes(figure, "png") for name, figure in figures.items() if figure}


def _pictures(record: Record) -> list[Picture]:
    """The pictures of a merge; importing matplotlib takes longer than a small merge."""
    if not (
        record.verdict
        or record.measured.path
        or record.measured.trace
        or record.measured.coefficients
    ):
        return []
    from clipmerge.report.figures import effect_picture, pictures_of

    effect = [effect_picture(record.verdict)] if record.verdict else []
    return [*effect, *pictures_of(record)]


def _examples(record: Record) -> Markup | None:
    if not (record.verdict and record.verdict.examples):
        return None
    from clipmerge.report.figures import as_image, examples_figure

    return as_image(examples_figure(record.verdict), examples_text(record.verdict))


def repeat_command(record: Record) -> str:
    """The command that repeats a merge: its own, with revisions filled in and without the push."""
    pinned = {checkpoint.source: checkpoint.pinned for _, checkpoint in record.checkpoints}
    images = record.calibration
    for data_record in (images, images.unlabelled) if images else ():
        if data_record and data_record.revision and dataset_repo(data_record.source):
            pinned[data_record.source] = parse_dataset(data_record.source).at(data_record.revision)
    repeated = []
    words = iter(shlex.split(record.command))
    for word in words:
        flag, equals, value = word.partition("=")
        if flag == "--push" and not equals:
            next(words, None)  # the repository's name
        elif flag not in ("--push", "--private"):
            repeated.append(
                f"{flag}={pinned[value]}" if value in pinned else pinned.get(word, word)
            )
    return shlex.join(repeated)


@dataclass(frozen=True)
class Column:
    """One number per layer, with its heading and explanation."""

    title: str
    about: str
    values: Mapping[str, Any]  # by layer
    unit: str = ""

    def cell(self, layer: str) -> str:
        """A layer's number, or its range of numbers, with three digits."""
        value = self.values.get(layer)
        if value is None:
            return "\N{EN DASH}"
        ends = value if isinstance(value, tuple) else (value,)
        return " to ".join(f"{end:.3g}" for end in ends)


def layer_columns(record: Record) -> list[Column]:
    """All numbers per layer: what was decided, and what was measured."""

    def setting(name: str, title: str, about: str) -> Column:
        return Column(
            title,
            about,
            {layer: getattr(entry, name) for layer, entry in record.plan.layers.items()},
        )

    columns = [
        setting("alpha", "alpha", "how far the layer goes: 0 = zero-shot, 1 = fine-tuned."),
        setting("alpha_range", "alpha range", "of the layer's learned coefficients."),
    ]
    if any(layer.mask for layer in record.plan.layers.values()):
        about = "share of the change that the mask keeps."
        columns.insert(1, setting("density", "density", about))
    names = dict.fromkeys(name for row in record.measurements.values() for name in row)
    for name in (
        name for name in names if not record.measured.coefficients or name not in _LEARNED
    ):
        reading = record.measured.statistics.get(name, StatisticAbout())
        values = {layer: row[name] for layer, row in record.measurements.items() if name in row}
        title = reading.title or name.replace("_", " ")
        columns.append(Column(title, reading.about or "as recorded.", values, reading.unit))
    for key, title, about in (
        ("z", "outlier score z", "distance from the other layers, in robust standard deviations."),
        ("stability", "stability", "share of the resamples in which the layer stands out."),
    ):
        scores = {
            layer: row[key] for layer, row in record.measured.straggler_scores.items() if key in row
        }
        columns.append(Column(title, about, scores))
    return [
        column for column in columns if any(value is not None for value in column.values.values())
    ]
