"""The demo: its parts on a few images, and every night all of it, as users run it."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from clipmerge.api.merge import prepare
from tests.support.command import clipmerge, printed
from tests.support.quick import FEW_STEPS, shorten_recipes

SHIPPED = ("wise-ft", "straggler-sparse", "auto")


@pytest.mark.nightly
def test_the_printed_command_asks_for_the_merge_that_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    splits = {"train": 1697, "calibration": 60, "test": 40}
    monkeypatch.setattr("clipmerge.demo.data._SPLITS", splits)
    shorten_recipes(monkeypatch, FEW_STEPS)
    asked = Mock(wraps=prepare)
    with monkeypatch.context() as patch:
        patch.setattr("clipmerge.api.merge.prepare", asked)
        demo = printed("demo")
    assert set(demo["accuracy"]) == {"zero-shot", "fine-tuned", *SHIPPED}
    assert [call.args[0].recipe.name for call in asked.call_args_list] == list(SHIPPED)
    assert Path(demo["report"]).is_file()
    program, *arguments, _ = shlex.split(demo["command"])
    assert program == "clipmerge"
    made, asked = asked.call_args.args[0], Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr("clipmerge.api.merge.prepare", asked)
    assert clipmerge(*arguments, tmp_path / "merged").code == 130
    again = asked.call_args.args[0]
    assert (again.recipe.name, replace(again, command="")) == ("auto", replace(made, command=""))


@pytest.fixture(scope="module")
def accuracy() -> Any:
    """Accuracies of the command's demo, in the cache of the tests."""
    return printed("demo")["accuracy"]


def shifted(accuracy: dict[str, float]) -> float:
    return sum(value for name, value in accuracy.items() if name != "clean") / (len(accuracy) - 1)


@pytest.mark.nightly
def test_fine_tuning_loses_robustness_and_merging_gets_it_back(accuracy: Any) -> None:
    assert set(accuracy["wise-ft"]) == {"clean", "noise", "inversion", "rotation", "blur"}
    assert shifted(accuracy["fine-tuned"]) < shifted(accuracy["zero-shot"]) - 0.1
    assert shifted(accuracy["wise-ft"]) > shifted(accuracy["fine-tuned"])
    for name in ("auto", "straggler-sparse"):
        assert shifted(accuracy[name]) > shifted(accuracy["wise-ft"]) + 0.02
    for name in ("fine-tuned", *SHIPPED):
        assert accuracy[name]["clean"] > accuracy["zero-shot"]["clean"]


@pytest.mark.nightly
def test_the_table_is_that_of_the_docs(accuracy: Any) -> None:
    """The models are the same everywhere; processors round what is learned, which may move
    four answers of 400."""
    page = Path(__file__).parents[2] / "docs" / "tutorials" / "first-merge.md"
    table = page.read_text(encoding="utf-8").partition("accuracy, %       clean")[2]
    shown = {
        cells[0]: [float(cell) for cell in cells[1:-1]]
        for cells in map(str.split, table.splitlines()[1:6])
    }
    assert accuracy.keys() == shown.keys()
    for model, sources in accuracy.items():
        assert [100 * value for value in sources.values()] == pytest.approx(shown[model], abs=1.01)
