"""Check settings that are used in computations: errors name the setting and its value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from clipmerge.errors import CheckpointError

_ABSENT = object()


def require_whole(settings: Mapping[str, Any], names: Iterable[str], where: str, *, least: int = 1) -> None:
    """Refuse settings that are not whole numbers.

    Args:
        settings: Values by name.
        names: Names to check.
        where: Prefix of the name in the message: file and section.
        least: Smallest number allowed.

    Raises:
        CheckpointError: If one is missing, of another type or too small; the message has its name and value.
    """
    for name in names:
        value = settings.get(name, _ABSENT)
        if type(value) is not int or value < least:  # a bool is an int, but not a count
            raise _wrong(where, name, value, f"a whole number from {least} on")


def require_number(settings: Mapping[str, Any], name: str, where: str, *, zero: bool = False) -> None:
    """Refuse a setting that is not a finite number above zero.

    Args:
        settings: Values by name.
        name: Name to check.
        where: Prefix of the name in the message: file and section.
        zero: Whether zero is allowed too.

    Raises:
        CheckpointError: If it is something else; the message has its name and value.
    """
    value = settings.get(name, _ABSENT)
    is_number = type(value) in (int, float) and math.isfinite(value)
    if not is_number or value < 0 or (value == 0 and not zero):
        raise _wrong(where, name, value, "a number from 0 on" if zero else "a number above 0")


def require_section(settings: Mapping[str, Any], name: str, where: str) -> None:
    """Refuse a section that is not an object; it may be absent or null.

    Args:
        settings: Values by name.
        name: Name to check.
        where: Prefix of the name in the message: the file.

    Raises:
        CheckpointError: If it is something else; the message has its name and value.
    """
    value = settings.get(name)
    if value is not None and not isinstance(value, dict):
        raise _wrong(where, name, value, "an object of settings")


def require_heads(width: int, heads: int, what: str) -> None:
    """Refuse a number of heads that does not divide the channels.

    Args:
        width: Number of channels.
        heads: Number of heads.
        what: File and setting, for the message.

    Raises:
        CheckpointError: If the number is zero or does not divide the channels.
    """
    if heads < 1 or width % heads:
        raise CheckpointError(f"{what} makes {heads} heads, which do not divide {width} channels; correct it")


def short(value: Any) -> str:
    """A value for messages, cut to 60 characters."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _wrong(where: str, name: str, value: Any, expected: str) -> CheckpointError:
    state = "is missing" if value is _ABSENT else f"is {short('null' if value is None else repr(value))}"
    return CheckpointError(f"{where}{name} {state}, but {expected} was expected; correct the file")
