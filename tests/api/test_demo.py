"""The demo, run once and then checked in every respect."""

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from clipmerge.api.plan import prepare
from tests.support.command import clipmerge, printed

pytestmark = [pytest.mark.slow, pytest.mark.uncounted]
#: straggler-sparse learns as long as auto again: CLIPMERGE_TRIALS=2 runs it too.
RECIPES = ("wise-ft", "auto")
if int(os.environ.get("CLIPMERGE_TRIALS", "1")) > 1:
    RECIPES = ("wise-ft", "straggler-sparse", "auto")


@pytest.fixture(scope="module")
def demo() -> dict[str, Any]:
    """The record of the command's demo, in the cache of the tests, and its requests."""
    asked = Mock(wraps=prepare)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipmerge.api.demo._RECIPES", RECIPES)
        patch.setattr("clipmerge.api.merge.prepare", asked)
        return {**printed("demo"), "requests": [call.args[0] for call in asked.call_args_list]}


def shifted(accuracy: dict[str, float]) -> float:
    return sum(value for name, value in accuracy.items() if name != "clean") / (len(accuracy) - 1)


def test_fine_tuning_loses_robustness_and_merging_gets_it_back(demo: dict[str, Any]) -> None:
    accuracy = demo["accuracy"]
    assert set(accuracy) == {"zero-shot", "fine-tuned", *RECIPES}
    assert set(accuracy["wise-ft"]) == {"clean", "noise", "inversion", "rotation", "blur"}
    assert shifted(accuracy["fine-tuned"]) < shifted(accuracy["zero-shot"]) - 0.1
    assert shifted(accuracy["wise-ft"]) > shifted(accuracy["fine-tuned"])
    assert shifted(accuracy["auto"]) > shifted(accuracy["wise-ft"]) + 0.02
    for name in ("fine-tuned", "wise-ft", "auto"):
        assert accuracy[name]["clean"] > accuracy["zero-shot"]["clean"]


def test_the_table_is_that_of_the_docs(demo: dict[str, Any]) -> None:
    """The models are the same everywhere; processors round what is learned, which may move
    four answers of 400."""
    page = Path(__file__).parents[2] / "docs" / "tutorials" / "first-merge.md"
    table = page.read_text(encoding="utf-8").partition("accuracy, %       clean")[2]
    told = {
        cells[0]: [float(cell) for cell in cells[1:-1]]
        for cells in map(str.split, table.splitlines()[1:6])
    }
    for model, accuracy in demo["accuracy"].items():
        assert [100 * value for value in accuracy.values()] == pytest.approx(told[model], abs=1.01)


def test_the_printed_command_asks_for_the_merge_that_was_made(
    demo: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *arguments, _ = shlex.split(demo["command"])
    assert program == "clipmerge"
    asked = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr("clipmerge.api.merge.prepare", asked)
    assert clipmerge(*arguments, tmp_path / "merged").code == 130
    again, made = asked.call_args.args[0], demo["requests"][-1]
    assert (again.recipe.name, replace(again, command="")) == ("auto", replace(made, command=""))
