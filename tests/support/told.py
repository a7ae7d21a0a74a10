"""A listener that keeps what it is told."""

from clipmerge.progress import Progress


class Told(Progress):
    """Keeps the lines that it is told, and the work: done, of all that is announced."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.work: list[tuple[float, float]] = []

    def advance(self, done: float, total: float) -> None:
        self.work.append((done, total))

    def say(self, text: str) -> None:
        self.lines.append(text)

    warn = say
