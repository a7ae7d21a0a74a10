"""Many tensors at once: a card starts one kernel for them, where a loop would start one for
each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
#: Entries that a card computes at once: 128 MB in float32, which is what such an operation takes
#: beside its inputs.
LARGE = 1 << 25


def bucketed(items: Iterable[T], size_of: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Group items, in order, until each group has at least this size.

    Example:
        >>> list(bucketed([1, 2, 3], int, 3))
        [[1, 2], [3]]
    """
    bucket, size = list[T](), 0
    for item in items:
        bucket.append(item)
        size += size_of(item)
        if size >= most:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def copy_each(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensors into others of any precision."""
    for dtype in dict.fromkeys(source.dtype for source in sources):
        chosen = [place for place, source in enumerate(sources) if source.dtype == dtype]
        torch._foreach_copy_(
            [targets[place] for place in chosen], [sources[place] for place in chosen]
        )
