"""Write a call of the API as a command line for its record, without private folders."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from typing import Any

from clipmerge.errors import UsageError
from clipmerge.files import local_path, source_exists
from clipmerge.options import flag_of
from clipmerge.planning.plan import last_part
from clipmerge.planning.recipe import Recipe
from clipmerge.progress import Journal, Progress

# A list or mapping with more entries is named by its type.
_MOST_ENTRIES = 20


class CallJournal(Journal):
    """A journal that also writes the call as a command line. Local paths are cut to their last
    part.

    The command line is made from the function's arguments. The calling program's own command line
    is never read, because it may contain access tokens.

    Attributes:
        command: The call as a command line.
    """

    def __init__(
        self, progress: Progress | None, function: str, *given: Any, output: Any, **options: Any
    ) -> None:
        """Write the call as a command line. Options that are ``None`` are left out."""
        super().__init__(progress)
        self._last_parts: dict[str, str] = {}
        words = ["clipmerge", function]
        for value in given:
            words += self._words(value)
        for name, value in options.items():
            if isinstance(value, bool):
                words.append(flag_of(name, value))
            elif value is not None:
                for word in self._words(value):
                    words += [flag_of(name), word]
        if output is not None:  # it does not exist yet, so `_is_local` would not see a path
            words += [flag_of("output"), self.cut(os.fspath(output))]
        self.command = shlex.join(words)

    def _words(self, value: Any) -> list[str]:
        """Return the words for an argument. An object in memory is named by its type."""
        if isinstance(value, os.PathLike) or _is_local(value):
            return [self.cut(os.fspath(value))]
        if isinstance(value, str):
            name, equals, place = value.rpartition("=")  # NAME=SOURCE
            return [name + equals + self.cut(place) if _is_local(place) else value]
        if isinstance(value, (int, float)):
            return [str(value)]
        if isinstance(value, Recipe):
            return [value.name]
        if not isinstance(value, (Mapping, list, tuple)) or len(value) > _MOST_ENTRIES:
            return [f"{type(value).__name__} in memory"]
        if isinstance(value, Mapping):
            return [f"{name}={word}" for name in value for word in self._words(value[name])]
        if value and all(isinstance(each, (int, float)) for each in value):
            return [",".join(map(str, value))]
        return [word for each in value for word in self._words(each)]

    def cut(self, path: str) -> str:
        """Return the last part of a path. Remember the path for `without_folders`."""
        place = local_path(path)
        for form in (path, str(place), str(place.absolute())):
            self._last_parts[form] = last_part(path)
        return last_part(path)

    def without_folders(self, text: str) -> str:
        """Cut each local path in a text to its last part, because folder names are private.

        Example:
            >>> CallJournal(None, "merge", output=None).without_folders(
            ...     "/home/me/val: 2 of hf://datasets/a/b show what /tmp/1.png shows"
            ... )
            'val: 2 of hf://datasets/a/b show what 1.png shows'
        """
        for path in sorted(self._last_parts, key=len, reverse=True):
            text = text.replace(path, self._last_parts[path])
        return re.sub(r"(?<![\w.:/])(/|~|\.\.?/)[^\s,;)]*/", "", text)


def _is_local(text: Any) -> bool:
    """Whether a value is the text of a local path, and not a Hub id, a name or a prompt."""
    if not isinstance(text, str):
        return False
    try:
        return text.startswith(("/", "~")) or source_exists(text)
    except UsageError:  # the text is too long for a path
        return False
