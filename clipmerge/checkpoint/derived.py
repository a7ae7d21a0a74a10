"""Checkpoints some of whose tensors are formed: converted, adapted, or unpickled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from clipmerge.checkpoint.source import Checkpoint
from clipmerge.files.safetensors import Array
from clipmerge.types import Names

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LazyTensor:
    """How a tensor is formed: the original's tensors that are read for it, and a function that
    makes it, 1-D.
    """

    keys: Names
    make: Callable[[], Array]


@dataclass(frozen=True, kw_only=True)
class DerivedCheckpoint(Checkpoint):
    """A view of a checkpoint some of whose tensors are formed, whole, when they are read; the last
    one is kept.
    """

    original: Checkpoint  # which has all other tensors
    lazy: dict[str, LazyTensor] = field(repr=False, compare=False)
    _latest: dict[str, Array] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, original: Checkpoint, lazy: dict[str, LazyTensor], **changes: Any) -> Self:
        """View a checkpoint with tensors that are formed, and with other facts."""
        facts = {}
        for attribute in fields(Checkpoint):
            facts[attribute.name] = getattr(original, attribute.name)
        facts |= changes
        return cls(**facts, original=original, lazy=lazy)

    def array(self, key: str, start: int = 0, stop: int | None = None) -> Array:
        """Take a run of one tensor's elements; see `Checkpoint.array`."""
        whole = self._latest.get(key)
        if whole is None:  # several threads may get here, each with its own key
            self._latest.clear()  # before the next one is formed, so that there are never two
            formed = self.lazy.get(key)
            whole = self.original.array(key) if formed is None else formed.make()
            self._latest[key] = whole
        return whole[start:stop]

    def release(self, key: str) -> None:
        """Release what was formed, and the mapped pages that it was made from."""
        self._latest.pop(key, None)
        formed = self.lazy.get(key)
        keys = (key,) if formed is None else formed.keys
        for each in keys:
            self.original.release(each)


def stored_array(values: Tensor) -> Array:
    """View a contiguous 1-D tensor in the form of `Checkpoint.array`: bfloat16 as its bits."""
    import torch

    if values.dtype == torch.bfloat16:
        bits: Array = values.view(torch.int16).numpy()
        return bits.view(np.uint16)
    return np.asarray(values.numpy())
