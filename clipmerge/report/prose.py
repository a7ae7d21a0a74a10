"""Pages, and the prose on them: whole sentences, signs, and flags and commands that break between
words only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from clipmerge.config import with_flags
from clipmerge.files.templates import render
from clipmerge.report.palette import DARK_MARKS, MARKS

_COMMAND = re.compile(r"`([^`]+)`")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_NEGATIVE = re.compile(r"(?<![\w.-])-(?=\d)")
# a layer, a file or an option, whose name is not capitalised
_NAME = re.compile(r"[./_:=-]")


def sentence(text: str, names: Collection[str] = ()) -> str:
    """Begin with a capital letter, unless the first word is a name, and end with a full stop.

    Example:
        >>> sentence("the merged model loses 3.3 points")
        'The merged model loses 3.3 points.'
        >>> sentence("auto, the best, loses 5.0 points", ["auto"])
        'auto, the best, loses 5.0 points.'
        >>> sentence("vision.3.mlp has no images"), sentence("")
        ('vision.3.mlp has no images.', '')
    """
    text = text.strip()
    if not text:
        return ""
    first = text.split()[0].rstrip(".:,;")
    begin = text[0] if first in names or _NAME.search(first) else text[0].upper()
    return begin + text[1:] + ("" if text[-1] in ".!?:" else ".")


def with_minus_signs(text: str) -> str:
    """Put minus signs in front of negative numbers.

    Example:
        >>> with_minus_signs("zero-shot: -9.5 to +3.0") == "zero-shot: \N{MINUS SIGN}9.5 to +3.0"
        True
    """
    return _NEGATIVE.sub("\N{MINUS SIGN}", text)


def minus(number: object) -> str:
    """Write a number, or a range of numbers, with minus signs instead of hyphens."""
    return str(number).replace("-", "\N{MINUS SIGN}")


def ranged(text: str) -> Markup:
    """Mark the interval behind a number, which a narrow page puts below it.

    Example:
        >>> ranged("54.0 [52.0, 56.0]"), ranged("54.0")
        (Markup('54.0 <span class="range">[52.0, 56.0]</span>'), Markup('54.0'))
    """
    number, bracket, interval = text.partition(" [")
    return (
        Markup('{} <span class="range">[{}</span>').format(number, interval)
        if bracket
        else Markup(escape(text))
    )


def flags(text: str) -> Markup:
    """Mark commands between backticks, and parameters as flags, which a narrow page must not
    break.

    Example:
        >>> flags("`clipmerge env`; --max-loss")
        Markup('<code>clipmerge env</code>; <code class="flag">--max-loss</code>')
    """
    marked = _COMMAND.sub(r"<code>\1</code>", str(escape(with_flags(text))))
    return Markup(_FLAG.sub(lambda found: f'<code class="flag">{found[0]}</code>', marked))


def words(command: str) -> Markup:
    """Mark the words of a command, so that a narrow page breaks it between them and not at a
    hyphen.

    Example:
        >>> words("clipmerge env")
        Markup('<span>clipmerge</span> <span>env</span>')
    """
    return Markup(" ").join(Markup("<span>{}</span>").format(word) for word in command.split(" "))


_FILTERS = {
    "minus": minus,
    "prose": with_minus_signs,
    "ranged": ranged,
    "sentence": sentence,
    "flags": flags,
    "words": words,
}


def page_of(template: str, values: Mapping[str, Any]) -> str:
    """Render a page that loads nothing from the network, in the colours of all pages."""
    file = Path(__file__).parent / "templates" / template
    return render(
        file, {"marks": MARKS, "dark_marks": DARK_MARKS, **values}, html=True, filters=_FILTERS
    )
