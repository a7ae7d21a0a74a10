"""Read small files from outside: only regular files, up to a size, parsed within limits.

Opening a pipe can block, a device never ends, and a few kilobytes of JSON can fill the memory or
keep a processor busy for minutes. Every failure is an `Unreadable` with the reason, to be written
after a file's name.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from clipmerge.errors import ClipmergeError
from clipmerge.files.limits import MAX_DIGITS, MAX_JSON_BYTES, MAX_TEXT_BYTES, MAX_VALUES, MIB

# Half of a surrogate pair, alone or in a whole pair.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
PairsHook = Callable[[Iterable[tuple[str, Any]]], Any]


class Unreadable(ValueError):
    """Why a file cannot be read, without its name."""


@contextmanager
def refusing(kind: type[ClipmergeError], what: str, then: str = "") -> Iterator[None]:
    """Make an error of the reason why something cannot be read: ``what (reason)then``."""
    try:
        yield
    except Unreadable as error:
        raise kind(f"{what} ({error}){then}") from None


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file, or a link to one, for reading; never blocks on a pipe."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a regular file of at most ``limit`` bytes."""
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise Unreadable(getattr(error, "strerror", None) or str(error)) from None
    if len(content) > limit:
        raise Unreadable(f"larger than {format_size(limit)}")
    return content


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """Read a regular text file of at most ``limit`` bytes, without the mark of its byte order."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8: {error.reason} at byte {error.start}") from None


def read_json(path: Path, *, pairs: PairsHook | None = None) -> Any:
    """Read a JSON file; see `parse_json`."""
    return parse_json(read_text(path, MAX_JSON_BYTES), pairs=pairs)


def parse_json(
    text: str,
    *,
    pairs: PairsHook | None = None,
    halves: bool = False,
    max_values: int = MAX_VALUES,
) -> Any:
    """Parse JSON from outside, of at most ``max_values`` values."""
    if sum(map(text.count, ",[{")) > max_values:
        raise Unreadable(f"more than {max_values} values")
    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_int=_integer)
        if not halves and _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise Unreadable("a string with half of a surrogate pair, \\ud800 to \\udfff") from None
    except RecursionError:
        raise Unreadable("nested too deeply") from None
    except ValueError as error:
        raise Unreadable(str(error)) from None


def parse_yaml(text: str) -> Any:
    """Parse YAML from outside; an alias (*name) could expand to very much, so it is not
    followed.
    """
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=loader)):
            raise Unreadable("an alias (*name) in it, which is not followed")
        return yaml.load(text, Loader=loader)
    except Exception as error:  # a tag that does not fit its text makes PyYAML raise anything
        raise Unreadable(" ".join(str(error).split())[:160] or type(error).__name__) from None


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise Unreadable(f"a number of {len(digits)} digits")
    return int(digits)


def format_size(count: int) -> str:
    """Format a number of bytes, such as ``64 MiB``."""
    return f"{count // MIB} MiB" if count >= MIB else f"{count // 1024} KiB"
