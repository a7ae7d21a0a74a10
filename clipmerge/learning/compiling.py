"""Compile the blocks of the towers for learning, if a card saves more time than that takes.

A compiled block computes the same with fewer kernels, which read and write activations less often.
Sums are rounded in another order.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Literal

import torch

from clipmerge.distributed import is_out_of_memory
from clipmerge.learning.objective import Objective
from clipmerge.models.kernels import blocks_of
from clipmerge.models.memory import MicroBatcher
from clipmerge.models.precision import Precision, passes

Compiling = Literal["auto", "always", "never"]
_BACKEND = "inductor"
# Prompts of the trial.
_PROMPTS = 16
# What a compiled block does not move of each byte of activations that a pass keeps, forward and
# backward, and bytes that a card moves in a second (docs/research/cost.md); compiling takes some
# half a minute, so that it pays from about this many seconds on.
_FEWER, _BYTES_A_SECOND, _SECONDS = 6.0, 2.5e12, 40.0


def pays(objective: Objective, image_nbytes: int, images: int) -> bool:
    """Whether compiling saves more than it takes.

    Args:
        objective: Calibration loss.
        image_nbytes: Bytes of activations that a pass keeps for each image.
        images: Number of images of all passes.
    """
    is_card = objective.data.context.device.type == "cuda" and find_spec("triton") is not None
    return is_card and _FEWER * image_nbytes * images / _BYTES_A_SECOND > _SECONDS


@contextmanager
def compiled(
    objective: Objective, precision: Precision, images: int, micro_batcher: MicroBatcher
) -> Iterator[None]:
    """In this context, run the blocks of the towers compiled, unless a trial with so many images
    fails; then a note says so.
    """
    towers = objective.criterion.model.towers.values()
    blocks = [block for tower in towers for block in blocks_of(tower)]
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=_BACKEND)
    with warnings.catch_warnings(), ExitStack() as stack:
        # torch's compiler looks whether hidden states have gradients, and warns of it
        warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor")
        stack.callback(_run_plainly, blocks)
        try:
            micro_batcher.run(images, partial(_try, objective, precision))
        except Exception as error:  # a compiler has many of its own
            if is_out_of_memory(error):
                raise
            _run_plainly(blocks)
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            objective.note(
                f"the model's blocks cannot be compiled ({reason}); learning goes on without"
            )
        objective.weights.clear_gradients()
        yield


def _run_plainly(blocks: Iterable[torch.nn.Module]) -> None:
    for block in blocks:
        vars(block).pop("forward", None)


def _try(objective: Objective, precision: Precision, images: int) -> None:
    """Send images and a few prompts through, forward and backward."""
    criterion, device = objective.criterion, objective.data.context.device
    with passes(device, precision):
        for batch in objective.data.batches[:1]:
            places = torch.arange(images, device=device) % len(batch)
            criterion.embed(batch.pixels[places]).float().sum().backward()  # type: ignore[no-untyped-call]
        if objective.weights.text_changes:
            places = torch.arange(_PROMPTS, device=device) % criterion.prompts.count
            criterion.prompts.features(places=places).float().sum().backward()  # type: ignore[no-untyped-call]
