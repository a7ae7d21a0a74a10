"""The process of the command line: ``clipmerge``, ``python -m clipmerge``, and ``accelerate launch -m clipmerge``."""

import signal

from clipmerge.cli import main


def run() -> None:
    """Run the command line; where it fails, the process ends at once."""
    try:
        main()
    except SystemExit as end:
        if end.code:
            _stop_at_once()
        raise


def _stop_at_once() -> None:
    """Keep nobody waiting for what is not needed any more, and let a second Ctrl-C end the process without a word."""
    from clipmerge.hashes import abandon

    abandon()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    run()
