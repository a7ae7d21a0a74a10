"""A merge of local checkpoints opens no connection, and HF_HUB_OFFLINE=1 keeps everything from opening one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import socket, sys
def refuse(*arguments, **options):
    sys.stderr.write("a connection was opened\\n")
    raise SystemExit(99)
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from clipmerge.__main__ import run
sys.argv = ["clipmerge", *sys.argv[1:]]
run()
"""


def started(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.mark.slow
def test_a_local_merge_opens_no_connection(pair: tuple[Path, Path], images: Path, tmp_path: Path) -> None:
    merged = started("merge", *pair, "--recipe", "wise-ft", "--output", tmp_path / "out")
    assert merged.returncode == 0, merged.stderr
    measured = started("evaluate", pair[0], "--data", images, "--format", "quiet")
    assert measured.returncode == 0, measured.stderr


def test_offline_is_honoured_and_the_blocking_works(pair: tuple[Path, Path]) -> None:
    offline = started("inspect", "acme/nothing", HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "HF_HUB_OFFLINE is set, and it is not in the cache" in offline.stderr
    online = started("inspect", "acme/nothing", HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    assert "a connection was opened" in online.stderr
