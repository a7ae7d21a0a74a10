"""The processes of one run: waiting for one another, and the error if one of them is gone."""

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

    from clipmerge.options import Device


class Terminated(BaseException):
    """The system or a launcher asked this process to end; not an `Exception`, so that nothing handles it as a fault."""


@contextmanager
def together() -> Iterator[None]:
    """Wait for the other processes in this block, and fail if one of them is gone."""
    try:
        yield
    except RuntimeError as error:  # torch's class for all errors between processes
        raise MeasureError(
            "another process of this run ended or does not answer, so this one cannot continue; nothing was written. "
            f"The reason is above or in that machine's log ({' '.join(str(error).split())[:80]})"
        ) from None


@contextmanager
def termination() -> Iterator[None]:
    """Let SIGTERM end this block as an exception, so that unfinished work is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except Exception as error:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:  # `_terminate` has run
            raise instead_of(error, Terminated()) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def instead_of(error: Exception, stopped: BaseException) -> BaseException:
    """Return the signal's exception, with the error's notes, if compiled code turned it into an error of its own."""
    for note in getattr(error, "__notes__", ()):
        stopped.add_note(note)
    return stopped


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: cleaning up has started
    raise Terminated


def is_main_process() -> bool:
    """Whether this process prints and writes; under ``accelerate launch`` only rank 0 does."""
    return os.environ.get("RANK", "0") == "0"


def require_device(device: Device) -> dict[str, bool]:
    """Refuse a device that does not exist; returns whether each kind of accelerator does."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device, True):
        raise UsageError(f"--device {device}: torch finds no such device; use --device auto or cpu")
    return available


def accelerator_for(device: Device) -> Accelerator:
    """Set up accelerate in float32 with TF32 off, regardless of its configuration file."""
    import torch  # takes a second, which commands without a model save
    from accelerate import Accelerator

    available = require_device(device)
    # a relative perturbation of 5e-4 does not even change a weight in TF32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    # without this, accelerate forms no process group on a machine without an accelerator
    on_cpu = device == "cpu" or (device == "auto" and not any(available.values()))
    return Accelerator(cpu=on_cpu, mixed_precision="no")
