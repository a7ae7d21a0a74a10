"""The processes of one run, and the device of each."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from clipmerge.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from clipmerge.types import Device

# Key in the store of a run, which a process sets when it reports an error.
_FAILED = "clipmerge/failed"
# Seconds between two looks at this key, and number of looks. A failed process waits this long for
# the main process, which may report the same error. A process also has this long to stop.
_LOOK_SECONDS, _LOOKS = 0.5, 20
_store: Any = None
_is_ending = threading.Event()


def is_main_process() -> bool:
    """Whether this process prints and writes: rank 0 of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def watch_processes() -> None:
    """If a launcher started several processes, end this one within seconds if another one fails.

    Otherwise it might wait for the failed process, because not every launcher ends the others.
    """
    global _store
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # about a store whose process has ended
    from torch.distributed.rendezvous import rendezvous

    _store, *_ = next(rendezvous("env://"))
    threading.Thread(target=_end_with_others, daemon=True).start()


def _end_with_others() -> None:
    with suppress(RuntimeError):  # the process that keeps the store has ended
        while not _is_ending.wait(_LOOK_SECONDS):
            if _store.check([_FAILED]):
                os.kill(os.getpid(), signal.SIGTERM)
                # code of a library may not notice the signal
                if not _is_ending.wait(_LOOKS * _LOOK_SECONDS):
                    os._exit(1)


def claim_error() -> bool:
    """Whether this process reports its error.

    The main process does. If only others fail, the first of them does.
    """
    _is_ending.set()
    if _store is None:
        return is_main_process()
    try:
        for _ in range(0 if is_main_process() else _LOOKS):
            if _store.check([_FAILED]):
                return False
            time.sleep(_LOOK_SECONDS)
        is_first = bool(_store.add(_FAILED, 1) == 1)
    except RuntimeError:  # the main process was killed
        return True
    time.sleep(2 * _LOOK_SECONDS)  # the store may end with this process
    return is_first


class DistributedContext:
    """The processes of this run, and the device on which this call computes.

    ``auto`` is the accelerator that torch finds, if any. accelerate has one device for the life of
    a process, but a notebook may use a GPU and then the CPU, so each call chooses its device here.
    Collectives need tensors on ``state.device``.
    """

    def __init__(self, device: Device) -> None:
        """Join the processes of a launcher; a collective that hangs fails after half an hour."""
        import torch  # takes a second, which commands without a model save
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        found = torch.accelerator.is_available() and torch.accelerator.current_accelerator()
        accelerator = found.type if found else "cpu"
        if device == "auto":
            kind = "cpu" if parse_flag_from_env("ACCELERATE_USE_CPU") else accelerator
        elif device in ("cpu", accelerator):
            kind = device
        else:
            raise UsageError(
                f"`device` {device}: torch finds no such device; use `device=auto` or cpu"
            )
        self.state = PartialState(cpu=kind == "cpu", timeout=timedelta(minutes=30))
        self.device = torch.device(kind)
        if kind not in ("cpu", "mps"):
            # a process may see fewer cards than there are processes, often one
            index = self.state.local_process_index % torch.accelerator.device_count()
            self.device = torch.device(kind, index)
        self.world_size: int = self.state.num_processes
        self.rank: int = self.state.process_index
        self.is_main_process: bool = self.state.is_main_process


def all_reduce_(context: DistributedContext, tensor: Tensor) -> None:
    """Replace a tensor by its sum over all processes, in place, with the same bits in each."""
    _run_collective(context, "all_reduce", tensor)


def broadcast_(context: DistributedContext, tensor: Tensor) -> None:
    """Copy a tensor of the main process to every other process, in place."""
    _run_collective(context, "broadcast", tensor, 0)


def _run_collective(
    context: DistributedContext, name: str, tensor: Tensor, *arguments: int
) -> None:
    """Call a collective of `torch.distributed` on a tensor, in place, if there are several
    processes.
    """
    import torch

    if context.world_size > 1:
        # NCCL needs tensors on a GPU
        on_device = tensor.to(context.state.device).contiguous()
        getattr(torch.distributed, name)(on_device, *arguments)
        tensor.copy_(on_device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, without waiting where that is safe."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the system ran out of memory.

    Apple's devices, CUDA's libraries and the CPU have no class of errors for it, only words.
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
    """Compute in exact float32 in this block, then restore the caller's settings.

    TF32 rounds weights so much that a relative change of 5e-4 is lost.
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
