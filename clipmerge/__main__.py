"""The process of the command line: ``clipmerge``, ``python -m clipmerge``, and ``accelerate launch
-m clipmerge``.
"""

import os

try:
    import signal  # takes 0.01 s; nothing else is imported before `run`

    from clipmerge.cli._signals import handle_signal
except KeyboardInterrupt:
    os.write(2, b"error: interrupted; nothing was left behind\n")
    os._exit(130)


def run() -> None:
    """Run the command line; on failure the process exits at once."""
    # unless a shell has set it to be ignored
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, handle_signal)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, handle_signal)
    import atexit  # a built-in module; functions registered first run last
    import gc  # the same

    atexit.register(_ignore_signals)
    atexit.register(_skip_last_search)
    # none is used, and looking for them takes 10 ms
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # until headers are read: what is imported stays, and looking for garbage in it takes 0.1 s
    gc.disable()
    from clipmerge.cli.app import main

    try:
        main()
    except SystemExit as end:
        if end.code:
            _prepare_exit()
        raise


def _skip_last_search() -> None:
    """Let Python end without searching all that was imported for garbage, which takes a second."""
    import gc
    import sys

    # triton, which torch for cards brings along, prints a list of what was not collected
    if "triton" in sys.modules:
        gc.unfreeze()
    else:
        gc.freeze()


def _prepare_exit() -> None:
    """Stop hashing, which is no longer needed, and let a second Ctrl-C end the process silently."""
    import sys

    # not imported here: a signal may have stopped the import of numpy, which cannot be begun twice
    if abandon := getattr(sys.modules.get("clipmerge.files.hashes"), "abandon", None):
        abandon()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _ignore_signals() -> None:
    """Ignore signals from now on: the command is done, and Python drops its handlers before the
    process ends.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is handle_signal:
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    run()
