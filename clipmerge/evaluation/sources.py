"""Names of the sources that are evaluated. Imports nothing that takes time, so that flags are checked at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from clipmerge.errors import UsageError
from clipmerge.files.paths import local_path


def parse_named_source(text: str) -> tuple[str, str]:
    """Split ``NAME=SOURCE``; without a name the source's last part is the name.

    Args:
        text: Text as the user wrote it.

    Raises:
        UsageError: If there is no source.

    Example:
        >>> parse_named_source("val=data/val"), parse_named_source("data/val")
        (('val', 'data/val'), ('val', 'data/val'))
    """
    name, equals, source = text.partition("=")
    if not (source if equals and name else text).strip():
        raise UsageError(f"'{text}': names no images; write NAME=SOURCE, such as val=data/val")
    if equals and name:
        return name, source
    path = Path(text)
    # what . and .. are called says nothing
    return (local_path(text).resolve().name if path.name in ("", "..") else path.name) or text, text


def named_sources(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """Split ``NAME=SOURCE`` texts.

    Args:
        flag: The flag, for messages.
        texts: What the user wrote.

    Returns:
        Sources by name.

    Raises:
        UsageError: If two sources share a name, or one is empty.
    """
    sources = [parse_named_source(text) for text in texts]
    if len(dict(sources)) != len(sources):
        raise UsageError(f"two {flag} have the same name; write NAME=SOURCE with different names")
    return dict(sources)


def check_source_name(name: str) -> None:
    """Refuse a name that cannot be a tensor's, which `write_correct` would give it, before anything is evaluated.

    Args:
        name: Name of a source.

    Raises:
        UsageError: If safetensors keeps the name for itself, or it is not UTF-8.
    """
    if name == "__metadata__":  # the header's own entry: the file would be written, and no reader would open it
        raise UsageError("a source cannot be named '__metadata__', which safetensors keeps for itself; choose another")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"a source cannot be named {name!a}, which is not UTF-8; write NAME=SOURCE") from None
