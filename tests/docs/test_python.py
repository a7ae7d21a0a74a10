"""The Python guide's code runs as it stands in order."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import programs
from tests.support.quick import shorten_recipes
from tests.support.tiny_clip import Folders, save_images

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "reference" / "python.md"


@pytest.mark.slow
@pytest.mark.uncounted
@pytest.mark.filterwarnings("default")
def test_the_guides_code_runs_in_order(
    pair: Folders,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, source in (("zeroshot", pair[0]), ("finetuned", pair[1]), ("val", images)):
        shutil.copytree(source, tmp_path / name)
    save_images(tmp_path / "shifted", seed=2)
    monkeypatch.chdir(tmp_path)
    shorten_recipes(monkeypatch)
    logging.getLogger("clipmerge").setLevel(logging.ERROR)
    blocks = programs(GUIDE)
    assert len(blocks) >= 10
    names: dict[str, Any] = {"__name__": "guide"}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    assert "Did you mean 'wise-ft'?" in capsys.readouterr().out
    assert names["swept"].correct["shifted"].shape[1] == 30
