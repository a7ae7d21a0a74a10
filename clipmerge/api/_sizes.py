"""Sizes as users write them."""

from __future__ import annotations

import re
from decimal import Decimal

from clipmerge.errors import UsageError


def byte_count(flag: str, value: str | int | None) -> int | None:
    """Read a size such as ``200MB``, ``5GB`` or ``1GiB``, with units in upper or lower case.

    Args:
        flag: The flag, for the message.
        value: A size, or a number of bytes.

    Returns:
        Bytes; ``None`` for ``None``.

    Raises:
        UsageError: If it is not a size above 0.

    Example:
        >>> byte_count("--max-shard-size", "1.5GB"), byte_count("--max-shard-size", "2KiB")
        (1500000000, 2048)
    """
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*", str(value).upper())
    if match is None or (match[3] and not match[2]):
        raise UsageError(f"{flag} {value}: expected a size, such as 200MB or 5GB")
    size = int(Decimal(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " "))
    if size < 1:
        raise UsageError(f"{flag} {value}: a shard holds at least a byte; expected a size, such as 200MB or 5GB")
    return size
