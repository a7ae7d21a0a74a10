"""Folders and files that may not be read: one line from the system, never a fault of clipmerge's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.image_files import png

# root reads everything, unless it gives that up for one process
AS_ANYBODY = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(AS_ANYBODY) and not shutil.which("setpriv"), reason="root, and no setpriv to be less"),
]


@pytest.fixture
def locked(pair: tuple[Path, Path], tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(pair[1], tmp_path / "folder" / "model")
    shutil.copytree(pair[1], tmp_path / "weights")
    (tmp_path / "record").mkdir()
    (tmp_path / "record" / "clipmerge.json").write_text("{}")
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "cat" / "1.png").write_bytes(png(0))
    (tmp_path / "recipe.yaml").write_text("method: {name: wise-ft}")
    shut = [tmp_path / name for name in ("folder", "weights/model.safetensors", "record/clipmerge.json", "recipe.yaml")]
    shut.append(tmp_path / "images" / "cat")
    for path in shut:
        path.chmod(0)
    yield tmp_path
    for path in shut:
        path.chmod(0o755)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("inspect", "HERE/folder"), 1),
        (("inspect", "HERE/folder/model"), 1),
        (("inspect", "HERE/weights"), 1),
        (("convert", "HERE/folder/model", "HERE/out", "--to", "open-clip"), 1),
        (("merge", "ZEROSHOT", "HERE/weights", "-r", "wise-ft", "-o", "HERE/out"), 1),
        (("merge", "ZEROSHOT", "FINETUNED", "-r", "lines", "--data", "HERE/images", "-o", "HERE/out"), 1),
        (("merge", "ZEROSHOT", "FINETUNED", "-r", "HERE/recipe.yaml", "-o", "HERE/out"), 1),
        (("merge", "ZEROSHOT", "FINETUNED", "-r", "wise-ft", "-o", "HERE/folder/out"), 1),
        (("report", "HERE/record"), 1),
        (("push", "HERE/record", "acme/robust"), 1),
        (("push", "HERE/folder/model", "acme/robust"), 1),
    ],
)
def test_what_may_not_be_read_is_one_line(
    locked: Path, pair: tuple[Path, Path], arguments: tuple[str, ...], code: int
) -> None:
    filled = [
        text.replace("HERE", str(locked)).replace("ZEROSHOT", str(pair[0])).replace("FINETUNED", str(pair[1]))
        for text in arguments
    ]
    command = [*AS_ANYBODY, sys.executable, "-m", "clipmerge", *filled]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(locked / "config"), "HF_TOKEN": "hf_x"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    errors = [line for line in run.stderr.splitlines() if not line.startswith("note: ")]
    assert run.returncode == code, run.stderr
    assert len(errors) == 1, run.stderr
    assert "Permission denied" in errors[0] or "is not writable for you" in errors[0]
    assert "unexpectedly" not in errors[0]
    assert "not known" not in errors[0]
    assert not (locked / "out").exists()
