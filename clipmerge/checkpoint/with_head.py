"""A zero-shot checkpoint with a classification head beside its own tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clipmerge.checkpoint.source import Checkpoint, stored
from clipmerge.files.safetensors import Array

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class WithHead(Checkpoint):
    """A checkpoint with a head that was made for it."""

    original: Checkpoint  # the checkpoint without the head
    head: dict[str, Tensor]

    def array(self, key: str, start: int = 0, stop: int | None = None) -> Array:
        """Read a run of one tensor's elements; see `Checkpoint.array`."""
        if key in self.head:
            return stored(self.head[key].flatten()[start:stop])
        return self.original.array(key, start, stop)

    def release(self, key: str) -> None:
        """Release a tensor's pages; see `Checkpoint.release`."""
        if key not in self.head:
            self.original.release(key)


def with_head(checkpoint: Checkpoint, like: Checkpoint, head: dict[str, Tensor]) -> WithHead:
    """Add a head to a zero-shot checkpoint, with the dtypes that it has in the fine-tuned one, ``like``."""
    entries = {key: replace(like.entries[key], file=checkpoint.files[0]) for key in head}
    values = checkpoint.facts(entries={**checkpoint.entries, **entries})
    return WithHead(**values, original=checkpoint, head=head)
