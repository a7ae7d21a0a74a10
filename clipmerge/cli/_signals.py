"""Ctrl-C and SIGTERM: one handler, which raises in a command and elsewhere ends the process.

Imports almost nothing: `clipmerge.__main__` sets the handler before anything else.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from clipmerge.errors import Terminated

#: What a finished command left in place; printed if a signal comes after it.
standing: list[str] = []
#: What ended a command, by the number of the signal.
HOW = {
    2: "interrupted",
    15: (
        "ended from outside (SIGTERM; a launcher sends it to all processes of a run when one of"
        " them fails)"
    ),
}
# Signals that a command received since it began; `None` while no command runs.
_received: list[int] | None = None


def handle_signal(number: int, _frame: object) -> None:
    """Raise in a command, so that it cleans up; elsewhere exit, because imports would swallow an
    exception or print its traceback.
    """
    if _received is not None:
        _received.append(number)
        if number == signal.SIGTERM:  # once is enough: cleaning up has started
            signal.signal(number, signal.SIG_IGN)
        raise _exception_for(number)
    if os.environ.get("RANK", "0") == "0":  # of several processes, only the main one prints
        line = f"error: {HOW[number]}; {'; '.join(standing) or 'nothing was left behind'}\n"
        os.write(2, line.encode("utf-8", "backslashreplace"))
    os._exit(128 + number)


def _exception_for(number: int) -> BaseException:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


@contextmanager
def raising_signals() -> Iterator[None]:
    """Let signals raise in this block, a command.

    If it fails, it prints its own line, so a further signal ends the process silently.
    """
    global _received
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if before[signal.SIGTERM] is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, handle_signal)
    _received = []
    try:
        yield
    except BaseException as error:
        before = {
            number: signal.SIG_DFL if handler is handle_signal else handler
            for number, handler in before.items()
        }
        if _received and isinstance(error, Exception):  # compiled code made it of the signal's
            stopped = _exception_for(_received[-1])
            for note in getattr(error, "__notes__", ()):
                stopped.add_note(note)
            raise stopped from error
        raise
    finally:
        _received = None
        for number, handler in before.items():
            signal.signal(number, handler)
