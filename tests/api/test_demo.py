"""The whole demo, run once and then checked in every respect."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from clipmerge.api.demo import demo as run_demo
from tests.support.command import done, printed

pytestmark = [pytest.mark.slow, pytest.mark.uncounted]


@pytest.fixture(scope="module")
def demo() -> dict[str, Any]:
    """The record of the command's demo, in the cache of the tests; about a minute on two cores."""
    records: list[dict[str, Any]] = []

    def kept(*arguments: Any, **options: Any) -> dict[str, Any]:
        records.append(run_demo(*arguments, **options))
        return records[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipmerge.api.demo.demo", kept)
        done("demo")
    return records[0]


def shifted(accuracy: dict[str, float]) -> float:
    return sum(value for name, value in accuracy.items() if name != "clean") / (len(accuracy) - 1)


def test_fine_tuning_loses_robustness_and_merging_gets_it_back(demo: dict[str, Any]) -> None:
    accuracy = demo["accuracy"]
    assert set(accuracy) == {"zero-shot", "fine-tuned", "wise-ft", "straggler-sparse", "auto"}
    assert set(accuracy["wise-ft"]) == {"clean", "noise", "inversion", "rotation", "blur"}
    assert shifted(accuracy["fine-tuned"]) < shifted(accuracy["zero-shot"]) - 0.1
    assert shifted(accuracy["wise-ft"]) > shifted(accuracy["fine-tuned"])
    assert shifted(accuracy["auto"]) > shifted(accuracy["wise-ft"]) + 0.02
    for name in ("fine-tuned", "wise-ft", "auto"):
        assert accuracy[name]["clean"] > accuracy["zero-shot"]["clean"]


def test_the_table_is_that_of_the_docs(demo: dict[str, Any]) -> None:
    """The models are the same everywhere; processors round what is learned, which may move an answer or two of 400."""
    page = Path(__file__).parents[2] / "docs" / "first-ten-minutes.md"
    table = page.read_text(encoding="utf-8").partition("accuracy, %       clean")[2]
    told = {cells[0]: [float(cell) for cell in cells[1:-1]] for cells in map(str.split, table.splitlines()[1:6])}
    for model, accuracy in demo["accuracy"].items():
        assert [100 * value for value in accuracy.values()] == pytest.approx(told[model], abs=0.81)


def test_the_printed_command_is_that_of_the_merge_and_runs(demo: dict[str, Any], tmp_path: Path) -> None:
    program, *arguments = shlex.split(demo["command"])
    assert program == "clipmerge"
    made = json.loads((Path(demo["models"]["auto"]) / "clipmerge.json").read_text(encoding="utf-8"))
    arguments[-1] = str(tmp_path / "merged")
    again = printed(*arguments, "--set", "measure.steps=2", "--set", "measure.held_back=0")
    assert again["recipe"]["measure"] == made["recipe"]["measure"] | {"steps": 2, "held_back": 0}
    for part in ("zeroshot", "finetuned", "calibration"):
        assert again[part] == made[part], part
