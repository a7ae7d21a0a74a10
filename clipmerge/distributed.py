"""The processes of one run: waiting for one another, and the error if one of them is gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from clipmerge.errors import ClipmergeError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from clipmerge.types import Device


# Copies of more bytes than this are made from memory that a card can read by itself.
_PINNED = 1 << 20


@contextmanager
def peer_errors() -> Iterator[None]:
    """Wait for the other processes in this block, and fail if one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        import torch

        if is_out_of_memory(error):  # NCCL's own, too
            raise
        words = ("gloo", "nccl", "connection", "socket", "timed out", "timeout", "process group")
        # gloo raises a plain `RuntimeError`, as every operation may
        by_gloo = type(error) is RuntimeError and any(word in str(error).lower() for word in words)
        if not (by_gloo or isinstance(error, torch.distributed.DistError)):
            raise
        raise ClipmergeError(
            "another process of this run ended or does not answer, so this one cannot continue;"
            " nothing was written. The reason is above or in that machine's log"
            f" ({' '.join(str(error).split())[:80]})"
        ) from None


def cores_per_process() -> int:
    """CPU cores for the threads of this process: those that it may use, divided by the processes of
    this run on this machine.
    """
    every = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every
    return max(1, allowed // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def is_main_process() -> bool:
    """Whether this process prints and writes: rank 0 of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def require_device(device: Device) -> None:
    """Refuse a device that does not exist, even if nothing would be computed on it."""
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
    }
    if not available.get(device, True):
        raise UsageError(f"`device` {device}: torch finds no such device; use `device=auto` or cpu")


class DistributedContext:
    """The processes of this run as accelerate knows them, and the device on which this call
    computes.

    The device is not accelerate's, which has one for the life of a process: a notebook may use a
    card and then the CPU, and a caller's own `Accelerator`, with its precision, stays as it is.
    Collectives need tensors on ``state.device``.
    """

    def __init__(self, device: torch.device) -> None:
        """Join the processes, if a launcher started several; a call that hangs is given up after
        half an hour.
        """
        import torch
        from accelerate import PartialState

        with peer_errors():
            self.state = PartialState(cpu=device.type == "cpu", timeout=timedelta(minutes=30))
        self.device = device
        if device.type not in ("cpu", "mps") and device.index is None:
            index = self.state.device.index
            if self.state.device.type != device.type or index is None:
                # a process may see fewer cards than there are processes: one, often
                module = getattr(torch, device.type, None)
                cards = module.device_count() if hasattr(module, "device_count") else 0
                index = self.state.local_process_index % max(1, cards)
            self.device = torch.device(device.type, index)
        self.world_size: int = self.state.num_processes
        self.rank: int = self.state.process_index
        started = os.environ.get("WORLD_SIZE", "1")
        if self.world_size == 1 and started != "1":  # each would write the output as the only one
            raise UsageError(
                f"{started} processes were started, but those on {device.type} cannot join as they"
                " were started: use torchrun, or one process, or `device=cpu`"
            )
        self.is_main_process: bool = self.state.is_main_process


def distributed_context(device: Device) -> DistributedContext:
    """The processes of this run, with this one's device: for ``auto`` the accelerator that torch
    finds, if any.
    """
    import torch  # takes a second, which commands without a model save
    from accelerate.utils import parse_flag_from_env

    require_device(device)
    if device != "auto":
        return DistributedContext(torch.device(device))
    if parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available():
        return DistributedContext(torch.device("cpu"))
    return DistributedContext(torch.accelerator.current_accelerator() or torch.device("cpu"))


def all_reduce_(context: DistributedContext, tensor: Tensor) -> None:
    """Replace a tensor by its sum over all processes, in place; the same bits in each of them."""
    import torch

    if context.world_size > 1:
        with peer_errors():
            carried = tensor.to(context.state.device)  # NCCL takes no tensor on the CPU
            torch.distributed.all_reduce(carried)
            tensor.copy_(carried)


def broadcast_(context: DistributedContext, tensor: Tensor, source: int = 0) -> None:
    """Replace a tensor by that of one process, in place, in every process."""
    import torch

    if context.world_size > 1:
        with peer_errors():
            carried = tensor.to(context.state.device).contiguous()
            torch.distributed.broadcast(carried, source)
            tensor.copy_(carried)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to ``device``, asynchronously where that is safe."""
    if device.type in ("cpu", "mps"):  # Apple's would read it when it may be gone
        return tensor.to(device)
    if device.type == "cuda" and tensor.nbytes > _PINNED:  # pragma: no cover - needs a GPU
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the system has too little memory; Apple's, CUDA's and its libraries', and
    the CPU say it in words alone.
    """
    import torch

    words = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "STATUS_ALLOC_FAILED",
        "unable to find an engine",  # cuDNN, without memory for the workspace of any
    )
    kinds = {
        RuntimeError,
        getattr(torch, "AcceleratorError", RuntimeError),
        getattr(torch.distributed, "DistBackendError", RuntimeError),
    }
    plain = type(error) in kinds and any(word in str(error) for word in words)
    return plain or isinstance(error, torch.OutOfMemoryError | MemoryError)


@contextmanager
def device_work() -> Iterator[None]:
    """Compute in exact float32 in this block, give the caller's settings back, and say what to
    lower without memory.
    """
    with _exact_float32():
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ClipmergeError(
                f"the device has too little memory ({' '.join(str(error).split('. ')[0].split())});"
                " lower `batch_size`, or use `device=cpu`"
            ) from None


@contextmanager
def _exact_float32() -> Iterator[None]:
    """A relative perturbation of 5e-4 does not even change a weight in TF32."""
    import torch

    backends: Any = torch.backends
    try:
        before = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except (
        RuntimeError
    ):  # the caller used torch's newer interface, after which the older one refuses to be read
        switches = [
            backends.cuda.matmul,
            backends.cudnn.conv,
            backends.mkldnn.matmul,
            backends.mkldnn.conv,
        ]
        settings = [switch.fp32_precision for switch in switches]
        for switch in switches:
            switch.fp32_precision = "ieee"
        try:
            yield
        finally:
            for switch, setting in zip(switches, settings, strict=True):
                switch.fp32_precision = setting
        return
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        backends.cudnn.allow_tf32 = before[1]
