"""Blocks of code on a page of the documentation."""

import re
from pathlib import Path

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str]]:
    """The language and the text of each block; the language may be empty."""
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


def programs(page: Path) -> list[str]:
    """The blocks in Python."""
    return [block for language, block in blocks(page) if language == "python"]


def lines(page: Path, *languages: str) -> list[str]:
    """The lines of the blocks in these languages, or of all. Continued lines are joined."""
    return [
        line
        for language, block in blocks(page)
        if language in languages or not languages
        for line in block.replace("\\\n", " ").splitlines()
        if line
    ]
