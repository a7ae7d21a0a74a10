"""The process of the command line: ``clipmerge``, ``python -m clipmerge``, and ``accelerate launch -m clipmerge``."""

import os

try:
    import signal  # takes 0.01 s; nothing else is imported before `run`

    from clipmerge.cli._early import end_at_once
except KeyboardInterrupt:
    os.write(2, b"error: interrupted; nothing was left behind\n")
    os._exit(130)


def run() -> None:
    """Run the command line; on failure the process exits at once."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # unless a shell has set it to be ignored
        signal.signal(signal.SIGINT, end_at_once)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end_at_once)
    from clipmerge.cli.app import main

    try:
        main()
    except SystemExit as end:
        if end.code:
            _stop_at_once()
        raise


def _stop_at_once() -> None:
    """Stop hashing, which is no longer needed, and let a second Ctrl-C end the process silently."""
    from clipmerge.files.hashes import abandon

    abandon()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    run()
