"""Inputs that are overwritten, replaced or truncated while they are read give one line, with nothing left behind."""

from __future__ import annotations

import ctypes
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipmerge.errors import CheckpointError
from clipmerge.files import unchanged
from clipmerge.files.unchanged import require_unchanged, watch
from clipmerge.output import folder as output_folder
from tests.support.command import clipmerge, refused
from tests.support.counted import counted


@pytest.fixture
def copies(pair: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    zeroshot, finetuned = (shutil.copytree(folder, tmp_path / folder.name) for folder in pair)
    return zeroshot, finetuned


def overwritten(file: Path) -> None:
    save_file({key: tensor + 1 for key, tensor in load_file(file).items()}, file)


def replaced(file: Path) -> None:
    shutil.copy(file, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


def removed(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("change", [overwritten, replaced, removed])
@pytest.mark.parametrize("command", ["merge", "convert"])
def test_an_input_that_changes_meanwhile_is_said(
    copies: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], command: str
) -> None:
    zeroshot, finetuned = copies
    written: Any = output_folder.output_file

    def changing(*arguments: Any, **options: Any) -> Any:
        change(finetuned / "model.safetensors")
        return written(*arguments, **options)

    monkeypatch.setattr(output_folder, "output_file", changing)
    output = finetuned.parent / "out"
    inputs = (zeroshot, finetuned, "--recipe", "wise-ft", "--output", output)
    outcome = clipmerge(command, *(inputs if command == "merge" else (finetuned, output, "--to", "open-clip")))
    assert "model.safetensors: changed while it was read, or could not be read to its end" in refused(outcome)
    assert {path.name for path in output.parent.iterdir()} == {zeroshot.name, finetuned.name}


# in a process of its own, since the fault ends a process that does not catch it
SCRIPT = """
import sys
from pathlib import Path
from clipmerge.checkpoint import open_checkpoint
file = Path(sys.argv[1])
found = open_checkpoint(str(file))
values = [found.array(key) for key in found.entries]
with file.open("r+b") as handle:
    handle.truncate(1000)
for value in values:
    value.sum()
try:
    found.provenance(hashed=sys.argv[2] == "hashed")
except Exception as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the fault is caught on Linux")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_input_that_is_cut_short_is_said_and_ends_no_process(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"x{suffix}"
    held = {"a.weight": torch.ones(1 << 20), "b.weight": torch.ones(1 << 10)}
    (save_file if suffix == ".safetensors" else torch.save)(held, file)
    command = [sys.executable, "-c", SCRIPT, file, "not"]
    run = subprocess.run(command, env=counted(), capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.returncode
    assert run.stderr.strip().splitlines() == [
        f"error: {file}: changed while it was read, or could not be read to its end; run again when nothing writes it"
    ]


def test_what_nobody_watches_and_what_stays_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    watch(tmp_path / "a")
    require_unchanged([tmp_path / "a", tmp_path / "nowhere"])
    (tmp_path / "a").write_text("b")
    with pytest.raises(CheckpointError, match="a: changed"):
        require_unchanged([tmp_path / "a"])


@pytest.mark.skipif(not unchanged._HAS_FAULTS, reason="the fault is caught on Linux")
def test_a_fault_elsewhere_is_left_to_whoever_caught_it_before() -> None:
    """The handler is called, not the fault made, which would end this process; none of our files is at address 8."""
    unchanged._install()
    library, before, handler, action = unchanged._kept
    now, place = unchanged._Action(), ctypes.create_string_buffer(128)
    ctypes.c_uint64.from_buffer(place, unchanged._ADDRESS_AT).value = 8
    try:
        handler(signal.SIGBUS, ctypes.addressof(place), None)
        library.sigaction(signal.SIGBUS, None, ctypes.byref(now))
    finally:
        library.sigaction(signal.SIGBUS, ctypes.byref(action), None)
    assert now.handler == before.handler != action.handler
