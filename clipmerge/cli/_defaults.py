"""Defaults of flags from the environment and from files; not of flags that publish, overwrite or
say where to write.

A flag on the command line wins, then ``CLIPMERGE_FLAG`` in the environment, then ``clipmerge.toml``
in the working folder, then ``clipmerge/clipmerge.toml`` in the user's configuration. The file in
the working folder may come from a stranger, with the images or the checkpoints: it may only set
what changes neither where anything is read from nor what becomes of the result.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipmerge.config import OPTIONS
from clipmerge.errors import UsageError, did_you_mean
from clipmerge.types import Json, Names

FILE = "clipmerge.toml"
#: Options that any file may set, and those that only the user's own file and the environment may
#: set too.
_ANYWHERE = tuple(name for name, option in OPTIONS.items() if option.settable == "anywhere")
_SETTABLE = tuple(name for name, option in OPTIONS.items() if option.settable)
#: Variables with another meaning.
_OTHERS = ("debug", "browser", "hub_timeout", "plugins")
_SWITCHES = {"0": False, "1": True, "false": False, "true": True}
_PREFIX = "CLIPMERGE_"
# Python's TOML reader takes time that grows with the square of the number of dots in a name, or
# faster.
_MAX_DOTS = 1000


class Defaults:
    """Values of flags that were not given, and where each comes from."""

    def __init__(self) -> None:
        """Set nothing."""
        self.values: Json = {}  # by parameter
        self.origins: dict[str, str] = {}  # the variable or the file, by parameter
        self.unknown: list[str] = []  # variables that set nothing

    def add(self, name: str, value: Any, origin: str) -> None:
        """Set a value, in place of an earlier one."""
        self.values[name] = value
        self.origins[name] = origin

    def words(self, arguments: Sequence[str]) -> list[str]:
        """The defaults as words of a command line."""
        words = []
        for name, value in self.values.items():
            flags = OPTIONS[name].names(name)
            short = tuple(flag for flag in flags if not flag.startswith("--"))  # -dval is -d val
            if value is False or any(
                word.partition("=")[0] in flags or (short and word.startswith(short))
                for word in arguments
            ):
                continue
            for item in value if isinstance(value, list) else [value]:
                words += [flags[0]] if item is True else [flags[0], str(item)]
        return words

    @property
    def note(self) -> str:
        """The defaults in force and where each comes from; empty if there are none."""
        parts = [
            f"--{name.replace('_', '-')} {value} ({self.origins[name]})"
            for name, value in self.values.items()
        ]
        notes = [f"defaults in force: {', '.join(parts)}"] if parts else []
        known = [_PREFIX + name.upper() for name in _SETTABLE]
        notes += [f"{name} sets nothing.{did_you_mean(name, known)}" for name in self.unknown]
        return "; ".join(notes)


#: The defaults of the running command.
applied = Defaults()


def read_defaults() -> Defaults:
    """Read the defaults; those of the user's own file are missing for a user without a home
    folder.
    """
    from clipmerge.files.paths import user_config

    defaults = Defaults()
    with contextlib.suppress(RuntimeError):
        _add_file(defaults, user_config() / FILE, _SETTABLE, "")
    more = "; the user's own file and the environment may set more"
    _add_file(defaults, Path(FILE), _ANYWHERE, more)
    for variable, text in os.environ.items():
        prefix = variable[: len(_PREFIX)]
        name = variable[len(_PREFIX) :].lower()
        if prefix != _PREFIX or name in _OTHERS:
            continue
        if name not in _SETTABLE:
            defaults.unknown.append(variable)
            continue
        value: Any = [text] if OPTIONS[name].is_repeated else text
        if OPTIONS[name].default is False:
            if text.lower() not in _SWITCHES:
                raise UsageError(f"{variable}={text[:40]}: expected 0 or 1")
            value = _SWITCHES[text.lower()]
        defaults.add(name, value, variable)
    return defaults


def _add_file(defaults: Defaults, file: Path, allowed: Names, more: str) -> None:
    if not file.is_file():
        return
    import tomllib  # only where there is a file: it takes a hundredth of a second

    from clipmerge.files.limits import MAX_RECIPE_BYTES
    from clipmerge.files.reading import Unreadable, read_text, refusing

    with refusing(UsageError, f"{file}: cannot be read"):
        text = read_text(file, MAX_RECIPE_BYTES)
        if text.count(".") > _MAX_DOTS:
            raise Unreadable(f"more than {_MAX_DOTS} dots")
        try:
            settings = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise Unreadable(" ".join(str(error).split())[:100]) from None
    for key, value in settings.items():
        name = key.replace("-", "_")
        if name not in allowed:
            known = [other.replace("_", "-") for other in allowed]
            raise UsageError(
                f"{file}: '{key}' cannot be set there (it may set"
                f" {', '.join(known)}{more}).{did_you_mean(key, known)}"
            )
        if OPTIONS[name].is_repeated:
            value = value if isinstance(value, list) else [value]
        elif not isinstance(value, str | int | float):
            raise UsageError(f"{file}: {key}: expected one value")
        defaults.add(name, value, str(file))
