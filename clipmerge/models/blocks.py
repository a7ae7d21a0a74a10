"""Start a tower in the middle: the input of each block is stored, and passed to it again later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clipmerge.models.kernels import FasterKernels

#: Index of a tower's block, and the hidden states that enter it.
Prefix = tuple[int, Tensor]


class _Given(torch.nn.Module):
    """Replaces the blocks that do not run: for any input, it returns the given hidden states."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.hidden

    def get_weight_dtype(self) -> torch.dtype:
        """The dtype of the tower, which open_clip asks its first block for."""
        return self.hidden.dtype


def block_list(tower: torch.nn.Module) -> tuple[torch.nn.Module, str] | None:
    """Find the outermost list of modules in a tower, its blocks: the module that holds it, and its
    name there.
    """
    for name, module in tower.named_modules():
        if isinstance(module, torch.nn.ModuleList):
            parent, _, attribute = name.rpartition(".")
            return tower.get_submodule(parent), attribute
    return None


def run_twice(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a function with activation checkpointing; in bfloat16 only inside
    `clipmerge.models.precision.passes`.
    """
    again = partial(
        checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), FasterKernels())
    )
    return again(function, *args, **kwargs)


@contextmanager
def starting_at(tower: torch.nn.Module, prefix: Prefix | None) -> Iterator[None]:
    """Let a tower start at a block with the given hidden states, regardless of its embeddings."""
    place = block_list(tower)
    if prefix is None or place is None:
        yield
        return
    block, hidden = prefix
    parent, attribute = place
    blocks: torch.nn.ModuleList = getattr(parent, attribute)
    setattr(parent, attribute, torch.nn.ModuleList([_Given(hidden), *blocks[block:]]))
    try:
        yield
    finally:
        setattr(parent, attribute, blocks)


def entering(tower: torch.nn.Module, run: Callable[[], Any]) -> tuple[Tensor, ...] | None:
    """Inputs of a tower's blocks and the output of the last, from one run; ``None`` if they form no
    chain.
    """
    place = block_list(tower)
    if place is None:
        return None
    blocks = getattr(*place)
    inputs: list[Any] = []
    outputs: list[Any] = []

    def keep_input(
        _module: torch.nn.Module, positional: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        inputs.append(positional[0] if positional else named.get("hidden_states"))

    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(keep_input, with_kwargs=True).remove)
            hooks.callback(
                block.register_forward_hook(lambda _m, _i, output: outputs.append(output)).remove
            )
        run()
    states = [*inputs[:1], *outputs]
    chained = len(inputs) == len(blocks) and all(
        a is b for a, b in zip(inputs[1:], outputs, strict=False)
    )
    if not chained or not all(isinstance(state, Tensor) for state in states):
        return None
    return tuple(states)
