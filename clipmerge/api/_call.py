"""The command line that a record quotes, without private folders."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from typing import Any

from clipmerge.files import local_path, source_exists
from clipmerge.options import flag_of
from clipmerge.planning.plan import last_part
from clipmerge.planning.recipe import Recipe
from clipmerge.progress import Journal, Progress

# A value with more entries is named by its type.
_MOST_ENTRIES = 20


class CallJournal(Journal):
    """A journal that also writes the call as a command line, with the last part of each local path.

    It never reads the command line of the calling program, which may contain tokens.

    Attributes:
        command: The call as a command line.
    """

    def __init__(
        self, progress: Progress | None, function: str, *given: Any, output: Any, **options: Any
    ) -> None:
        """Write the command line. Options that are ``None`` were not given."""
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
        if output is not None:  # it does not exist yet, so it would not look like a path
            words += [flag_of("output"), self.cut(os.fspath(output))]
        self.command = shlex.join(words)

    def _words(self, value: Any) -> list[str]:
        """Write a value as words of a command line. Objects are named by their type."""
        if isinstance(value, os.PathLike):
            return [self.cut(os.fspath(value))]
        if isinstance(value, str):
            name, equals, place = value.rpartition("=")  # NAME=SOURCE
            if _is_local(value):
                return [self.cut(value)]
            return [name + equals + self.cut(place) if _is_local(place) else value]
        if isinstance(value, (int, float)):
            return [str(value)]
        short = isinstance(value, (Mapping, list, tuple)) and len(value) <= _MOST_ENTRIES
        if short and isinstance(value, Mapping):
            return [f"{name}={word}" for name in value for word in self._words(value[name])]
        if short and value and all(isinstance(each, (int, float)) for each in value):
            return [",".join(map(str, value))]
        if short:
            return [word for each in value for word in self._words(each)]
        return [value.name if isinstance(value, Recipe) else f"{type(value).__name__} in memory"]

    def cut(self, path: str) -> str:
        """Return the last part of a path, and remember the path for `without_folders`."""
        place = local_path(path)
        for form in (path, str(place), str(place.absolute())):
            self._last_parts[form] = last_part(path)
        return last_part(path)

    def without_folders(self, text: str) -> str:
        """Remove the folders, which are private, from the paths in a sentence.

        Example:
            >>> CallJournal(None, "merge", output=None).without_folders(
            ...     "/home/me/val: 2 of hf://datasets/a/b show what /tmp/1.png shows"
            ... )
            'val: 2 of hf://datasets/a/b show what 1.png shows'
        """
        for path in sorted(self._last_parts, key=len, reverse=True):
            text = text.replace(path, self._last_parts[path])
        return re.sub(r"(?<![\w.:/])(/|~|\.\.?/)[^\s,;)]*/", "", text)


def _is_local(text: str) -> bool:
    """Whether a text is a path on this machine, rather than a Hub id, a name or a prompt."""
    try:
        return text.startswith(("/", "~")) or source_exists(text)
    except (OSError, ValueError):  # too long for a path
        return False
