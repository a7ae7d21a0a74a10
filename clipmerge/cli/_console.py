"""A console that shows foreign text as text: no escape sequence in a name reaches the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from clipmerge.errors import printable


class SafeConsole(Console):
    """Rich's console, with control characters in the text written as escapes; styles are kept.

    Text is no markup, and ``:key:`` in a name is no emoji.
    """

    def __init__(self, **options: Any) -> None:
        """Set what is switched off, and the options of rich's console."""
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render like rich, except for control characters."""
        for segment in super().render(renderable, options):
            text = "\n".join(printable(line, limit=len(line)) for line in segment.text.split("\n"))
            yield segment if segment.control else Segment(text, segment.style)


def render_plain(console: Console, renderables: Sequence[RenderableType]) -> str:
    """Render for a file or a pipe: one line per paragraph, and no blanks at the end of a line."""
    with console.capture() as captured:
        for renderable in renderables:
            for part in renderable.renderables if isinstance(renderable, Group) else [renderable]:
                console.print(part, soft_wrap=isinstance(part, str | Text))
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def table_of(names: str, *numbers: str, wraps: bool = True) -> Table:
    """An empty table without lines: a column of names, and columns of numbers, whose headings may
    wrap.
    """
    columns = (Column(head, justify="right", no_wrap=not wraps) for head in numbers)
    return Table(Column(names, overflow="fold"), *columns, box=None, pad_edge=False)
