"""`clipmerge sweep`: flags and output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

from clipmerge.cli._options import (
    FineTuned,
    ZeroShot,
    command,
    output_flag,
    sources_flag,
)
from clipmerge.cli._terminal import Terminal
from clipmerge.config import SweepOptions
from clipmerge.types import Json

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

# Longer names are cut to this many cells before columns are left out; longer headings always are.
_NAME, _TITLE = 30, 16


@command(SweepOptions)
def sweep_command(
    terminal: Terminal,
    zeroshot: ZeroShot,
    finetuned: FineTuned,
    id: Annotated[
        list[str], sources_flag("--id", "Images like the training data; may be repeated.")
    ],
    ood: Annotated[
        list[str], sources_flag("--ood", "Images unlike the training data; may be repeated.")
    ],
    output: Annotated[Path, output_flag("Folder to write.")],
    **options: Unpack[SweepOptions],
) -> None:
    """Compare recipes with the alpha curve.

    ID and OOD accuracy of each, as a table, a picture and a page.
    """
    from clipmerge.api.sweep import sweep

    record = sweep(
        zeroshot,
        finetuned,
        id=id,
        ood=ood,
        output=output,
        **options,
    ).record
    terminal.result(record, lambda: SweepTable(record))
    terminal.end(f"Wrote {output} (page: {output / 'sweep.html'}, picture: {output / 'curve.png'})")


class SweepTable:
    """A sweep's table on a terminal: as many columns and intervals as fit its width."""

    def __init__(self, record: Json) -> None:
        """Store the record."""
        self._record = record

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the headline and the widest table that fits, and explain its numbers."""
        from rich.text import Text

        from clipmerge.report.text import gain_notes, sweep_headline

        yield Text(sweep_headline(self._record), style="bold")
        yield Text()

        wide = options.update(width=10_000)

        def width(names: int, shape: tuple[bool, bool]) -> int:
            return console.measure(self._table(names, *shape), options=wide).maximum

        # single sources, and intervals, where there is room for them
        shapes = ((True, True), (False, True), (False, False))
        shape = next(
            (candidate for candidate in shapes if width(_NAME, candidate) <= options.max_width),
            shapes[-1],
        )
        # names get the width left by the numbers, which are never cut
        yield self._table(max(1, 1 + options.max_width - width(1, shape)), *shape)
        yield Text()
        notes = [
            "gain: mean OOD minus the curve's at equal ID accuracy, in points.",
            *gain_notes(self._record),
        ]
        if shape[1]:
            level = self._record["bootstrap"]["level"]
            notes.append(
                f"[low, high]: {100 * level:.0f}% intervals over images, the same draws for all"
                " points."
            )
        if not all(shape):
            notes.append("More columns in a wider window, and in sweep.html.")
        for note in notes:
            yield Text(note, style="dim")
        for table in _other_tasks(self._record) if self._record.get("other_tasks") else ():
            yield Text()
            yield table

    def _table(self, names: int, sources: bool, spread: bool) -> Table:
        from rich.text import Text

        from clipmerge.cli._console import table_of
        from clipmerge.report.sweep_table import rows_of, shorten_middle, sweep_columns

        *others, gain = sweep_columns(self._record)
        shown = [column for column in others if sources or not column.is_source]
        cells = [column.text(spread=spread) for column in (*shown, gain)]
        heads = (*[column.title for column in shown], "gain")
        table = table_of(
            shorten_middle("accuracy, %", names),
            *(shorten_middle(head, _TITLE) for head in heads),
            wraps=False,
        )
        for index, (head, is_recipe, _) in enumerate(rows_of(self._record)):
            row = [shorten_middle(head, names), *[column[index] for column in cells]]
            table.add_row(*map(Text, row), style="bold" if is_recipe else None)
        return table


def _other_tasks(record: Json) -> Iterator[Table]:
    """Scores on tasks that the model was not fine-tuned for, one row per point as in the table of
    accuracies.

    Accuracies share a table; each set of images with captions has its own table, because it has six
    numbers.
    """
    from rich.text import Text

    from clipmerge.cli._console import table_of
    from clipmerge.report.sweep_table import other_tasks_section

    section = other_tasks_section(record)
    tables: dict[str, list[tuple[int, str]]] = {}
    for index, name in enumerate(section["other_tasks_columns"]):
        task, _, measure = name.rpartition(": ")
        title, head = ("other tasks", task) if measure == "accuracy" else (task, measure)
        tables.setdefault(title, []).append((index, head))
    for title, columns in tables.items():
        table = table_of(f"{title}, %", *(head for _, head in columns))
        table.columns[0].no_wrap = True  # the headings wrap
        for row in section["other_tasks_rows"]:
            cells = (row["cells"][index] for index, _ in columns)
            table.add_row(
                *map(Text, (row["head"], *cells)), style="bold" if row["is_mark"] else None
            )
        yield table
