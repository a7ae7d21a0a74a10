"""The processes of one run, and the device of each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from clipmerge.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from clipmerge.types import Device


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


class DistributedContext:
    """The processes of this run as accelerate knows them, and the device on which this call
    computes: for ``auto`` the accelerator that torch finds, if any.

    The device is not accelerate's, which has one for the life of a process: a notebook may use a
    card and then the CPU. Collectives need tensors on ``state.device``.
    """

    def __init__(self, device: Device) -> None:
        """Join the processes, if a launcher started several; a call that hangs is given up after
        half an hour.
        """
        import torch  # takes a second, which commands without a model save
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        found = torch.accelerator.is_available() and torch.accelerator.current_accelerator()
        card = found.type if found else "cpu"
        if device == "auto":
            kind = "cpu" if parse_flag_from_env("ACCELERATE_USE_CPU") else card
        elif device in ("cpu", card):
            kind = device
        else:
            raise UsageError(
                f"`device` {device}: torch finds no such device; use `device=auto` or cpu"
            )
        self.state = PartialState(cpu=kind == "cpu", timeout=timedelta(minutes=30))
        self.device = torch.device(kind)
        if kind not in ("cpu", "mps"):
            # a process may see fewer cards than there are processes: one, often
            index = self.state.local_process_index % torch.accelerator.device_count()
            self.device = torch.device(kind, index)
        self.world_size: int = self.state.num_processes
        self.rank: int = self.state.process_index
        self.is_main_process: bool = self.state.is_main_process


def all_reduce_(context: DistributedContext, tensor: Tensor) -> None:
    """Replace a tensor by its sum over all processes, in place; the same bits in each of them."""
    import torch

    if context.world_size > 1:
        carried = tensor.to(context.state.device)  # NCCL takes no tensor on the CPU
        torch.distributed.all_reduce(carried)
        tensor.copy_(carried)


def broadcast_(context: DistributedContext, tensor: Tensor) -> None:
    """Replace a tensor by that of the main process, in place, in every process."""
    import torch

    if context.world_size > 1:
        carried = tensor.to(context.state.device).contiguous()
        torch.distributed.broadcast(carried, 0)
        tensor.copy_(carried)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to ``device``, asynchronously where that is safe."""
    return tensor.to(device, non_blocking=device.type == "cuda")


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
def exact_float32() -> Iterator[None]:
    """Compute in exact float32 in this block; the caller's settings come back at its end.

    A relative perturbation of 5e-4 does not even change a weight in TF32.
    """
    import torch

    backends: Any = torch.backends
    try:
        before = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError:  # the caller used torch's newer interface, and may not read the older one
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
