"""All errors as one tree, with the exit code of each branch.

    ClipmergeError            1  an error that the user can fix
    ├── CheckpointError          weights that cannot be read, or do not match
    ├── DataError                calibration or evaluation images
    ├── VerdictError             a verdict that the user fails on
    ├── OutputError              the output folder
    ├── HubError                 the Hugging Face Hub: network, rights, names
    └── UsageError            2  an option, a recipe or a plan that cannot be used

Every message is one line: what happened, where, what was expected and what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Python calls them not printable, but Persian, Hindi and emoji need them.
_JOINERS = "\u200c\u200d"

# Common words, and the choice that each means.
_OTHER_WORDS = {"gpu": "cuda", "fp16": "float16", "fp32": "float32"}


class ClipmergeError(Exception):
    """Base of all errors that a user can fix: one line, exit code 1.

    Messages quote names of tensors, folders and files, which may contain anything, so the base
    class makes them printable.
    """

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        """Store the message as one printable line; see `printable`."""
        super().__init__(printable(str(message)))


class CheckpointError(ClipmergeError):
    """Weights that cannot be read safely, or checkpoints that do not match."""


class DataError(ClipmergeError):
    """Images, labels or class names that cannot be used."""


class VerdictError(ClipmergeError):
    """A verdict that ``fail_on`` names; nothing was written.

    Attributes:
        result: The result of `merge` without an output.
    """

    def __init__(self, message: object, result: Any) -> None:
        """Store the message and the result."""
        super().__init__(message)
        self.result = result


class OutputError(ClipmergeError):
    """An output folder that cannot be written."""


class HubError(ClipmergeError):
    """The Hugging Face Hub refused, or could not be reached."""


class UsageError(ClipmergeError):
    """An option, a recipe or a plan that cannot be used; exit code 2."""

    exit_code = 2


def printable(text: str, *, limit: int = 10_000) -> str:
    r"""Make text safe to show, as one line of at most about ``limit`` letters.

    Line breaks, tabs and wide blanks become blanks. Other characters that are not printable, such
    as control characters and bytes that are not UTF-8, become escapes.

    Example:
        >>> printable("a\x1b[31mb\nc")
        'a\\x1b[31mb c'
    """
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]} ... {text[-half:]}"
    if text.isprintable():
        return text
    return "".join(map(_escape, text))


def _escape(letter: str) -> str:
    if letter.isprintable() or letter in _JOINERS:
        return letter
    return " " if letter.isspace() else letter.encode("unicode_escape").decode()


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Suggest the closest option, as text to append to a message; empty if none is close.

    Example:
        >>> did_you_mean("alhpa", ["alpha", "density"])
        " Did you mean 'alpha'?"
        >>> did_you_mean("ALPHA", ["alpha"])
        " Did you mean 'alpha'?"
        >>> did_you_mean("gpu", ["cpu", "cuda"])
        " Did you mean 'cuda'?"
        >>> did_you_mean("zzz", ["alpha"])
        ''
    """
    import difflib  # takes longer to import than everything else here

    folded: dict[str, str] = {}
    for option in options:
        if option != word:  # such as a link that leads nowhere
            folded.setdefault(option.casefold(), option)
    word = word.casefold()
    close = difflib.get_close_matches(_OTHER_WORDS.get(word, word), folded, n=1, cutoff=0.6)
    if not close:
        return ""
    return f" Did you mean '{folded[close[0]]}'?"


def did_you_mean_one_of(word: str, listed: str) -> str:
    """Suggest the closest of the choices that a text lists in quotes; see `did_you_mean`.

    Example:
        >>> did_you_mean_one_of("cdua", "should be 'cpu' or 'cuda'")
        " Did you mean 'cuda'?"
    """
    return did_you_mean(word, listed.split("'")[1::2])


def did_you_mean_path(path: Path, names: Iterable[str] = ()) -> str:
    """Suggest the closest of ``names`` and of the files beside a path that does not exist, as text
    to append to a message.
    """
    while not path.parent.is_dir():  # the first part that does not exist
        path = path.parent
    beside = (file.name for file in path.parent.iterdir() if not file.name.startswith("."))
    return did_you_mean(path.name, [*names, *beside])


def list_choices(kind: str, word: str, known: Iterable[str]) -> str:
    """Suggest the closest known name and list all of them, as text to append to a message.

    Example:
        >>> list_choices("recipes", "atuo", ["auto", "lines"])
        ". Did you mean 'auto'? (recipes: auto, lines)"
    """
    names = list(known)
    listed = ", ".join(names) or "none"
    meant = did_you_mean(word, names)
    if meant:
        meant = f".{meant}"
    return f"{meant} ({kind}: {listed})"


def shorten(names: Iterable[str], limit: int = 5) -> str:
    """List the first ``limit`` names, and the number of the others.

    Example:
        >>> shorten(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    listed = list(names)
    head = ", ".join(listed[:limit])
    rest = len(listed) - limit
    return f"{head} and {rest} more" if rest > 0 else head


def counted(number: int, one: str, several: str) -> str:
    """Write a number with its noun in singular or plural.

    Example:
        >>> counted(1, "image is", "images are"), counted(2, "image is", "images are")
        ('1 image is', '2 images are')
    """
    return f"{number} {one if number == 1 else several}"
