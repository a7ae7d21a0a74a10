"""Processes of one run: waiting for one another, and the error when one of them is gone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from clipmerge.errors import MeasureError, UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from clipmerge.planning.choices import Device


class Terminated(BaseException):
    """The system or a launcher asked this process to end; not an `Exception`, so that nothing takes it for a fault."""


@contextmanager
def together() -> Iterator[None]:
    """Wait for the other processes in this block, and say so if one of them is gone.

    Raises:
        MeasureError: If another process ended, or did not answer for half an hour.
    """
    try:
        yield
    except RuntimeError as error:  # torch's one class for whatever goes wrong between processes
        raise MeasureError(
            "another process of this run ended or does not answer, so this one cannot go on; nothing was written. What "
            f"ended it stands above or in that machine's log ({' '.join(str(error).split())[:80]})"
        ) from None


@contextmanager
def termination() -> Iterator[None]:
    """Let SIGTERM end this block as an exception, so that unfinished work is cleaned up.

    Raises:
        Terminated: When the signal comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: cleaning up is under way
    raise Terminated


def is_main_process() -> bool:
    """Whether this process prints; under ``accelerate launch`` only rank 0 does."""
    return os.environ.get("RANK", "0") == "0"


def accelerator_for(device: Device) -> Accelerator:
    """Set up accelerate in float32 with TF32 off, whatever its configuration file says.

    Args:
        device: ``auto`` takes the accelerator there is.

    Raises:
        UsageError: If the device asked for is not there.
    """
    import torch  # a second that commands without a model do not pay
    from accelerate import Accelerator

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device, True):
        raise UsageError(f"--device {device}: torch sees no such device here; use --device auto or cpu")
    # a perturbation of 5e-4 relative does not even change a TF32 weight
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    # without being told, accelerate forms no process group on a machine that has no accelerator
    on_cpu = device == "cpu" or (device == "auto" and not any(available.values()))
    return Accelerator(cpu=on_cpu, mixed_precision="no")
