"""Python looks for garbage from the stage after reading on, not while a command imports."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import clipmerge

COMMANDS = {
    "merge": ["merge", "{zeroshot}", "{finetuned}", "--recipe", "wise-ft", "--output", "{output}"],
    "evaluate": ["evaluate", "{zeroshot}", "--data", "val={images}"],
    "inspect": ["inspect", "{zeroshot}", "{finetuned}"],
    "convert": ["convert", "{zeroshot}", "{output}", "--to", "open-clip"],
}


@pytest.fixture
def disabled() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("disabled")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_enables_it_before_it_computes(
    name: str, pair: tuple[Path, Path], images: Path, tmp_path: Path
) -> None:
    places = {"zeroshot": pair[0], "finetuned": pair[1], "images": images, "output": tmp_path / "out"}
    ended = clipmerge(*(word.format(**places) for word in COMMANDS[name]))
    assert ended.code == 0, ended.err
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


def test_the_process_disables_it_for_its_imports() -> None:
    told = "import atexit, gc; atexit.register(lambda: print(gc.isenabled()))"
    code = f"{told}\nfrom clipmerge.__main__ import run\nrun()"
    ended = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "False"
