"""A receiver of progress that records its calls."""

from clipmerge.progress import Progress


class Told(Progress):
    """Records notes and warnings in `lines`, and (done, total) in `work`."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.work: list[tuple[float, float]] = []

    def advance(self, done: float, total: float) -> None:
        self.work.append((done, total))

    def say(self, text: str) -> None:
        self.lines.append(text)

    warn = say
