"""What the processes of one run do together, and what is said when one of them is gone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from clipmerge.errors import MeasureError


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
    """Let SIGTERM end this block as an exception, so that what is half done is cleaned up.

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
