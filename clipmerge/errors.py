"""Everything that can go wrong, as one tree, and the exit code each branch maps to.

    ClipmergeError            1  something the user can mend
    ├── CheckpointError          weights that cannot be read, or do not fit each other
    ├── RecipeError              a recipe file or --set that says something unknown
    ├── PlanError                a plan that does not fit the checkpoints
    ├── DataError                calibration or evaluation images
    ├── MeasureError             a measurement that cannot be made or came out non-finite
    ├── OutputError              the output folder
    ├── HubError                 the Hugging Face Hub: network, rights, names
    └── UsageError            2  a command line that contradicts itself

Every message is one line: what happened, where, what was expected and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ClipmergeError(Exception):
    """Base of every error a user can mend; printed as one line, exit code 1."""

    exit_code = 1


class CheckpointError(ClipmergeError):
    """Weights that cannot be read safely, or two checkpoints that do not fit each other."""


class RecipeError(ClipmergeError):
    """A recipe file or a ``--set`` that names something unknown or out of range."""


class PlanError(ClipmergeError):
    """A plan that does not fit the checkpoints it is applied to."""


class DataError(ClipmergeError):
    """Images, labels or class names that cannot be used."""


class MeasureError(ClipmergeError):
    """A measurement that cannot be made, or came out non-finite."""


class OutputError(ClipmergeError):
    """An output folder that cannot be written."""


class HubError(ClipmergeError):
    """The Hugging Face Hub refused, or could not be reached."""


class UsageError(ClipmergeError):
    """A command line that contradicts itself; exit code 2."""

    exit_code = 2


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Suggest the closest of ``options``, ready to be appended to a message.

    Args:
        word: What the user wrote.
        options: What would have been accepted.

    Returns:
        ``" Did you mean 'x'?"`` with its leading space, or the empty string when nothing is close.

    Example:
        >>> did_you_mean("alhpa", ["alpha", "density"])
        " Did you mean 'alpha'?"
        >>> did_you_mean("zzz", ["alpha"])
        ''
    """
    close = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def shorten(names: Iterable[str], limit: int = 5) -> str:
    """Join names for a one-line message, the first ``limit`` spelled out and the rest counted.

    Example:
        >>> shorten(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    listed = list(names)
    head = ", ".join(listed[:limit])
    rest = len(listed) - limit
    return f"{head} and {rest} more" if rest > 0 else head
