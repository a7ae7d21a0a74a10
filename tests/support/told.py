"""A listener that keeps what it is told."""

from clipmerge.progress import Progress


class Told(Progress):
    """Keeps the lines that it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    warn = say
