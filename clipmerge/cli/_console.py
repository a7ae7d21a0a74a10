"""A console that shows foreign text as text: no escape sequence in a name reaches the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from clipmerge.errors import printable


class SafeConsole(Console):
    """Rich's console, with control characters in the text written as escapes; styles are kept."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render like rich, except for control characters."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(_lines(segment.text), segment.style)


def _lines(text: str) -> str:
    return "\n".join(printable(line, limit=len(line)) for line in text.split("\n"))
