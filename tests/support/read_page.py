"""An HTML page read back: its tags, its words and the cells of its tables, and whether every
element is closed."""

from html.parser import HTMLParser

#: Elements without an end.
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page that was read: all tags with attributes, elements left open, the rows of all tables,
    words in one line."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self._words: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] not in ("style", "script"):
            self._words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)
