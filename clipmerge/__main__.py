"""The entry point of ``clipmerge``, ``python -m clipmerge`` and ``torchrun -m clipmerge``."""

import atexit
import os
import signal
import sys


def run() -> None:
    """Run the command line, and exit with its code."""
    # a path may have bytes that are not UTF-8
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    code = 130
    try:
        from clipmerge.cli._terminal import ignore_signals, interrupt, interrupt_again

        sys.unraisablehook = interrupt_again
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under `nohup`
                signal.signal(number, interrupt)
        from clipmerge.cli.app import main

        code = main()
        # a launcher sends signals to processes that have finished, too
        ignore_signals()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
    atexit.register(_end_process, code)
    sys.exit(code)


def _end_process(code: int) -> None:
    """Exit at once: Python would collect garbage for a second, and threads of torch may abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
