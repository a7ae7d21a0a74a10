"""The command line in a process that opens no connection: ``python -m tests.support.offline
ARGUMENTS``.
"""

import socket
import sys
from typing import Any


def _refuse(*_arguments: Any, **_options: Any) -> None:
    sys.stderr.write("a connection was opened\n")
    raise SystemExit(99)


if __name__ == "__main__":
    socket.socket.connect = socket.create_connection = socket.getaddrinfo = _refuse  # type: ignore
    from clipmerge.__main__ import run

    sys.argv[0] = "clipmerge"
    run()
