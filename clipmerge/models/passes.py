"""Forward passes that fit a device: in 16 bits if that is faster, and in batches that fit into
memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
    if device.type == "cpu":
        features = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, feature, bool)() for feature in features)
    # CUDA, ROCm and Intel have this function; Apple does not
    supports = getattr(getattr(torch, device.type, None), "is_bf16_supported", None)
    # older cards emulate bfloat16 in float32
    return supports is not None and bool(supports(including_emulation=False))


def dtype_of(device: torch.device, precision: Precision) -> torch.dtype:
    """Choose the dtype of matrix products; ``auto`` is the device's fastest."""
    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if multiplies_bfloat16(device):
        return torch.bfloat16
    # T4, V100 and AMD's older cards; for CPUs and for Apple's and Intel's cards the gain is unknown
    return torch.float16 if device.type == "cuda" else torch.float32


def in_precision(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Compute forward passes in this precision; weights and their gradients stay float32."""
    dtype = dtype_of(device, precision)
    if dtype == torch.float32:
        return nullcontext()
    # without a cache of casts, because weights move between passes
    return torch.autocast(device.type, dtype, cache_enabled=False)


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


def embed_with_graph(embed: Callable[[T], Tensor], pieces: Sequence[T]) -> Tensor:
    """Embed images or prompts, piece by piece, and join the features: (all inputs, width).

    If there are several pieces, the graph keeps no activations, and the backward pass computes
    those of one piece at a time again.
    """
    if len(pieces) == 1:
        return embed(pieces[0])
    return torch.cat([checkpoint(embed, piece, use_reentrant=False) for piece in pieces])


def finite_scores(scores: Tensor, images: str) -> Tensor:
    """Return scores or features. Raise an error if one is not finite: argmax would choose NaN."""
    if bool(scores.isfinite().all()):
        return scores
    raise ClipmergeError(
        f"{images}: the model's scores are NaN or infinite, so they name no class; check the"
        " checkpoints, these images, and any alpha outside [0, 1]"
    )


class MicroBatcher:
    """Runs images through a model in micro-batches, and halves these whenever memory runs out.

    At each halving, ``say`` gets a note, and ``spare`` is called to save memory elsewhere.

    Attributes:
        max_images: Most images in a micro-batch; ``None`` for all that are given.
    """

    def __init__(
        self, say: Callable[[str], None], spare: Callable[[], None] = lambda: None
    ) -> None:
        self.max_images: int | None = None
        self._say = say
        self._spare = spare

    def run(self, images: int, work: Callable[[int], T]) -> T:
        """Call ``work`` with the number of images whose activations it may keep; whenever memory
        runs out, call it with half of that number.

        ``work`` must start anew each time, without results of a failed attempt.
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
            self._say(
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
    if image.device.type != "cpu" or not hasattr(os, "sysconf"):
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
    room = _SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = max(1, int(room / max(1, sum(sizes.values()))))
    del graph
    return count
