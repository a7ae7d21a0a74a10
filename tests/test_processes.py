"""What a process does about the others of its run, without starting any: waiting for them, and being ended."""

from __future__ import annotations

import signal
import threading

import pytest
import torch

from clipmerge.distributed import Terminated, termination, together
from clipmerge.errors import MeasureError


def test_another_process_that_is_gone_is_told() -> None:
    told = r"another process of this run ended or does not answer.*\(shape '\[2, 2\]' is invalid"
    with pytest.raises(MeasureError, match=told), together():
        torch.zeros(3).reshape(2, 2)  # as torch.distributed does, it raises torch's class for all errors


def test_sigterm_ends_a_block_and_nothing_after_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), termination():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_leaves_signals_to_the_main_one() -> None:
    """Python lets only the main thread handle them; in a notebook or a server others call clipmerge."""
    handlers = []

    def work() -> None:
        with termination():
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]
