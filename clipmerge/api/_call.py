"""The call of a command, written so that its record can be published."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipmerge.files import local_path, source_exists
from clipmerge.options import flag_of
from clipmerge.planning.plan import last_part
from clipmerge.planning.recipe import Recipe
from clipmerge.progress import Journal, Progress
from clipmerge.types import as_tuple

# A value with more entries is named by its type.
_MOST_ENTRIES = 20


class CallJournal(Journal):
    """A journal that also keeps the call. Local paths are cut to their last part. The command line
    of the calling program is never read, because it may hold tokens.

    Attributes:
        command: The call, as clipmerge's own command line or as Python.
    """

    def __init__(
        self, progress: Progress | None, function: str, *given: Any, **options: Any
    ) -> None:
        """Start the first stage; options that are ``None`` were not given."""
        super().__init__(progress)
        self._last_parts: dict[str, str] = {}
        if options["output"] is not None:  # it does not exist yet, so it would not look like a path
            options["output"] = Path(options["output"])
        words = [self._public(value) for value in given]
        told = {name: self._public(value) for name, value in options.items() if value is not None}
        if self._progress.is_command_line:
            line = [text for word in words for text in as_tuple(word)]
            for name, value in told.items():
                for each in as_tuple(value):
                    line.append(flag_of(name, each))
                    if not isinstance(each, bool):
                        line.append(str(each))
            self.command = shlex.join(["clipmerge", function, *line])
        else:
            arguments = [*map(repr, words), *(f"{name}={value!r}" for name, value in told.items())]
            self.command = f"clipmerge.{function}({', '.join(arguments)})"

    def _public(self, value: Any) -> Any:
        """The public form of a value: data as is, a path cut, another object named by its type."""
        if isinstance(value, os.PathLike):
            return self.cut(os.fspath(value))
        if isinstance(value, str):
            name, equals, place = value.rpartition("=")  # NAME=SOURCE
            if _is_local(value):
                return self.cut(value)
            return name + equals + self.cut(place) if _is_local(place) else value
        if isinstance(value, (int, float)):
            return value
        if isinstance(value, (Mapping, list, tuple)) and len(value) <= _MOST_ENTRIES:
            if isinstance(value, Mapping):
                return dict(zip(value, map(self._public, value.values()), strict=True))
            return list(map(self._public, value))
        return value.name if isinstance(value, Recipe) else f"{type(value).__name__} in memory"

    def cut(self, path: str) -> str:
        """Cut a path to its last part, here and in all warnings."""
        place = local_path(path)
        for form in (path, str(place), str(place.absolute())):
            self._last_parts[form] = last_part(path)
        return last_part(path)

    def without_folders(self, text: str) -> str:
        """Cut the folders from the paths in a sentence, because they are private.

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
    """Whether a text is a path on this machine, and not a Hub id, a name or a prompt."""
    try:
        return text.startswith(("/", "~")) or source_exists(text)
    except (OSError, ValueError):  # too long for a path
        return False
