"""Commands that are stopped or killed at random moments leave their whole output or none."""

import hashlib
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest

from tests.support.command import start
from tests.support.tiny_clip import Folders

#: Signals per command.
TRIALS = int(os.environ.get("CLIPMERGE_TRIALS", "3"))


def weights_of(folder: Path) -> str | None:
    """The hash of the weights of a whole output; ``None`` if there is no folder."""
    if not folder.exists():
        return None
    assert {"config.json", "clipmerge.json", "report.html", "README.md"} <= {
        path.name for path in folder.iterdir()
    }
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def run(pair: Folders, output: Path, alpha: str, moment: float = 600, number: int = 9) -> float:
    """Merge, and send a signal after so many seconds; how long it took."""
    command = ("merge", *pair, "-r", "wise-ft", "--alpha", alpha, "--overwrite", "-o", output, "-q")
    process = start(*command)
    begin = time.monotonic()
    while process.poll() is None and time.monotonic() - begin < moment:
        time.sleep(0.01)
    if process.poll() is None:
        process.send_signal(number)
    process.communicate()
    return time.monotonic() - begin


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_merge_leaves_a_whole_output_or_none(
    pair: Folders, tmp_path: Path, number: int
) -> None:
    output, chance = tmp_path / "out", random.Random(number)
    whole = {}
    for alpha in ("0.3", "0.7"):
        seconds = run(pair, tmp_path / alpha, alpha)
        whole[alpha] = weights_of(tmp_path / alpha)
    found: str | None = None
    for trial in range(TRIALS):
        alpha = ("0.3", "0.7")[trial % 2]
        run(pair, output, alpha, chance.uniform(0.1, seconds), number)
        after = weights_of(output)
        assert after in (found, whole[alpha])
        found = after
        left = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        assert not left or number == signal.SIGKILL
    run(pair, output, "0.3")
    assert weights_of(output) == whole["0.3"]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "0.3", "0.7"}


def test_a_file_too_large_for_the_disk_is_an_error_of_one_line_and_leaves_nothing(
    pair: Folders, tmp_path: Path
) -> None:
    command = ("merge", *pair, "--recipe", "wise-ft", "--output", tmp_path / "out", "-q")
    process = start(
        *command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    )
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    told = "cannot be written (File too large); nothing was left behind"
    assert err == f"error: {tmp_path / 'out'}: {told}\n"
    assert list(tmp_path.iterdir()) == []
