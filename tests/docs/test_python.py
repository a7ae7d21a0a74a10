"""The Python guide's code runs as it stands, in order, and the notebook from top to bottom."""

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.quick import FEW_STEPS, SMALL_STEPS, shorten_recipes
from tests.support.tiny_clip import Folders, save_images

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "reference" / "python.md"
NOTEBOOK = ROOT / "examples" / "robust_merge.ipynb"
#: The demo learns in full; here it is the code that is tested, on few images.
IN_THE_KERNEL = """
import pytest
from clipmerge.demo import data
from tests.support import quick
patch = pytest.MonkeyPatch()
no_limit = {"max_loss": 100}  # within another, so few images end at the fine-tuned model
quick.shorten_recipes(patch, quick.FEW_STEPS | no_limit)
data._SPLITS = dict(train=1697, calibration=60, test=40)
"""


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
    shorten_recipes(monkeypatch, FEW_STEPS | SMALL_STEPS)
    logging.getLogger("clipmerge").setLevel(logging.ERROR)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 10
    names: dict[str, Any] = {"__name__": "guide"}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    assert "Did you mean 'wise-ft'?" in capsys.readouterr().out
    weights = [
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("applied", "merged")
    ]
    assert names["plan"].to_frame().shape[0] == 20
    assert names["swept"].correct["shifted"].shape[1] == 30
    assert len(weights[0]) == len(weights[1])


@pytest.mark.nightly
@pytest.mark.uncounted
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = []
    monkeypatch.setenv(
        "XDG_CACHE_HOME", str(tmp_path / "cache")
    )  # the demo's folder with fewer images
    notebook.cells.insert(0, nbformat.v4.new_code_cell(IN_THE_KERNEL))
    nbclient.NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert any(
        "text/html" in output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    )


def test_the_notebook_is_stored_executed_and_names_no_local_path() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell.outputs) for cell in code) >= 5
    assert not re.search(r"/(?:tmp|root|home|Users)/", nbformat.writes(notebook))
