"""Forward passes that fit a device: in 16 bits where it is faster, and with no more images at once
than memory holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from clipmerge.distributed import is_out_of_memory
from clipmerge.errors import ClipmergeError

T = TypeVar("T")
Precision = Literal["auto", "float32", "bfloat16", "float16"]
# Share of a machine's memory for activations; the rest is for weights and for other programs.
_SHARE = 0.25


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 faster than in float32."""
    if device.type != "cpu":  # CUDA's, ROCm's and Intel's say so; Apple's does not
        supports = getattr(getattr(torch, device.type, None), "is_bf16_supported", None)
        # with emulation, older cards would say that they support it, by way of float32
        return bool(supports is not None and supports(including_emulation=False))
    asked = (
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(bool(supports()) for supports in asked if supports is not None)


def dtype_of(device: torch.device, precision: Precision) -> torch.dtype:
    """Choose the dtype of matrix products; ``auto`` is the device's fastest."""
    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if multiplies_bfloat16(device):
        return torch.bfloat16
    # T4, V100 and AMD's older cards; for CPUs and for Apple's and Intel's cards the gain is unknown
    return torch.float16 if device.type == "cuda" else torch.float32


@contextmanager
def in_precision(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute forward passes in this precision; weights and their gradients stay float32."""
    dtype = dtype_of(device, precision)
    if dtype == torch.float32:
        yield
        return
    # no cache of casts, because weights move between passes
    with torch.autocast(device.type, dtype, cache_enabled=False):
        yield


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Compute in float32 and with gradients in this block, whatever the caller has set."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)


def embed_with_graph(embed: Callable[[Tensor], Tensor], inputs: Tensor, at_once: int) -> Tensor:
    """Embed inputs, and keep activations of at most ``at_once`` of them in memory; if there are
    more inputs, the backward pass computes activations again.
    """
    if len(inputs) <= at_once:
        return embed(inputs)
    return torch.cat([recomputed(embed, piece) for piece in torch.split(inputs, at_once)])


def recomputed(function: Callable[[T], Tensor], inputs: T) -> Tensor:
    """Call a function, and let the backward pass compute its activations again."""
    output: Tensor = checkpoint(function, inputs, use_reentrant=False)
    return output


def finite_scores(scores: Tensor, images: str) -> Tensor:
    """Return scores or features. Raise an error if one is not finite: argmax would choose NaN."""
    if bool(scores.isfinite().all()):
        return scores
    raise ClipmergeError(
        f"{images}: the model's scores are NaN or infinite, so they name no class; check the"
        " checkpoints and these images"
    )


class MicroBatcher:
    """Runs images through a model in micro-batches, and halves these whenever memory runs out.

    At each halving, ``tell`` gets a note, and ``spare`` is called to save memory elsewhere.
    """

    def __init__(
        self,
        max_images: int | None,
        tell: Callable[[str], None],
        spare: Callable[[], None] = lambda: None,
    ) -> None:
        self.max_images = max_images  # in a micro-batch; ``None`` for all that are given
        self._tell, self._spare = tell, spare

    def run(self, images: int, work: Callable[[int], T]) -> T:
        """Call ``work`` with the number of images whose activations it may keep; whenever memory
        runs out, call it with half of that number.

        ``work`` must start anew each time, not go on from a failed attempt.
        """
        while True:
            count = min(self.max_images or images, images)
            try:
                return work(count)
            except (RuntimeError, MemoryError) as error:
                # a retry inside this block would keep the failed attempt's tensors alive
                if count <= 1 or not is_out_of_memory(error):
                    raise
            clear_device_cache(garbage_collection=True)
            self.max_images = count // 2
            self._spare()
            self._tell(
                f"memory does not suffice for {count} images at once: going on with"
                f" {self.max_images}"
            )

    def forward(self, model: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        """Send images through a model without a graph, in micro-batches."""
        return self.run(
            len(pixels),
            lambda count: torch.cat([model(piece) for piece in torch.split(pixels, count)]),
        )


def affordable_images(
    module: torch.nn.Module, embed: Callable[[Tensor], Tensor], image: Tensor
) -> int | None:
    """Estimate from one image, (1, 3, height, width), the number of images whose activations fit
    into a CPU's memory; ``None`` for a GPU, which reports when its memory runs out.
    """
    pages = getattr(os, "sysconf", None)
    if image.device.type != "cpu" or pages is None:
        return None
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = embed(image)  # kept until the end, so that no memory is reused and counted twice
    room = _SHARE * pages("SC_PAGE_SIZE") * pages("SC_PHYS_PAGES")
    count = max(1, int(room / max(1, sum(sizes.values()))))
    del graph
    return count
