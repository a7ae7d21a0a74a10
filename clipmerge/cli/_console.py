"""A console that shows foreign text as text: no escape sequence in a name reaches the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.text import Text

from clipmerge.errors import printable


class SafeConsole(Console):
    """Rich's console, with control characters in the text written as escapes; styles are kept.

    Text is no markup, and ``:key:`` in a name is no emoji.
    """

    def __init__(self, **options: Any) -> None:
        """Set what is switched off, and the options of rich's console."""
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render like rich, except for control characters."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(_lines(segment.text), segment.style)


def parts_of(renderable: RenderableType) -> Sequence[RenderableType]:
    """The parts of a group; for anything else, the thing itself."""
    return renderable.renderables if isinstance(renderable, Group) else [renderable]


def plain(console: Console, parts: Sequence[RenderableType]) -> str:
    """Render for a file or a pipe: one line per paragraph, and no blanks at the end of a line."""
    with console.capture() as captured:
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, str | Text))
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _lines(text: str) -> str:
    return "\n".join(printable(line, limit=len(line)) for line in text.split("\n"))
