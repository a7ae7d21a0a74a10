"""The process of the command line: ``clipmerge``, ``python -m clipmerge``, and ``torchrun -m
clipmerge``.
"""

import atexit
import os
import signal
import sys


def run() -> None:
    """Run the command line, and end the process with its exit code."""
    # paths hold any bytes
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    code = 130
    try:
        from clipmerge.cli._terminal import ignore_signals, interrupt

        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has set it
                signal.signal(number, interrupt)
        from clipmerge.cli.app import main

        code = main()
        # a launcher also ends processes that are done
        ignore_signals()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
    atexit.register(_end_process, code)
    sys.exit(code)


def _end_process(code: int) -> None:
    """End at once: Python itself would look for garbage for a second, and torch's threads can abort
    it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
