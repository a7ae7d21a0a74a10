"""Ctrl-C and SIGTERM while no command runs. Imports almost nothing: `clipmerge.__main__` sets the
handler at once.
"""

import os

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


def end_at_once(number: int, _frame: object) -> None:
    """Exit before a command begins or after it ends: imports would swallow an exception or print
    its traceback.

    `clipmerge.cli._ending` recognises this function, and lets signals raise while a command runs.
    """
    if os.environ.get("RANK", "0") == "0":  # of several processes, only the main one prints
        line = f"error: {HOW[number]}; {'; '.join(standing) or 'nothing was left behind'}\n"
        os.write(2, line.encode("utf-8", "backslashreplace"))
    os._exit(128 + number)
