"""Ctrl-C before any command runs. Imports nothing, so that `clipmerge.__main__` can set the handler at once."""

import os

#: Printed if the process ends with nothing done.
NOTHING_DONE = b"error: interrupted; nothing was left behind\n"


def end_before_any_command(_signal: int, _frame: object) -> None:
    """Exit at Ctrl-C while there is nothing to clean up: imports would swallow an exception or print its traceback.

    `clipmerge.cli._ending` recognises this function, and lets Ctrl-C raise while a command runs.
    """
    os.write(2, NOTHING_DONE)
    os._exit(130)
