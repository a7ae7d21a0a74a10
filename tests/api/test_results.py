"""Results: a short repr, a table in a notebook, a DataFrame if pandas is installed."""

import sys
from pathlib import Path
from typing import Any

import pytest

import clipmerge
from clipmerge.api._results import MergeResult
from clipmerge.progress import Progress
from clipmerge.report.text import advice_text, texts_of
from tests.support.tiny_clip import Folders, save_images

QUIET: dict[str, Any] = {"progress": Progress()}


@pytest.fixture(scope="module")
def results(
    pair: Folders, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("results")
    measured: dict[str, Any] = {"data": images, "batch_size": 6, "verdict": False, **QUIET}
    other = save_images(folder / "other", seed=1)
    return {
        "plan": clipmerge.plan(*pair, "straggler-outlier", **measured),
        "merge": clipmerge.merge(*pair, "straggler-outlier", output=folder / "merged", **measured),
        "evaluate": clipmerge.evaluate(pair[1], {"val": images}, **QUIET),
        "inspect": clipmerge.inspect(*pair, **QUIET),
        "sweep": clipmerge.sweep(
            *pair, id={"val": images}, ood={"<odd>": other}, alphas=(0, 1), **QUIET
        ),
    }


#: By function: how the repr begins, the number of rows, and columns of the table.
SHOWN: dict[str, tuple[str, int, set[str]]] = {
    "plan": (
        "Plan(recipe 'straggler-outlier', 20 layers, alpha",
        20,
        {"alpha", "density", "mask", "barrier", "reason"},
    ),
    "merge": (
        "MergeResult(",
        20,
        {"alpha", "density", "mask", "size", "loss_drop", "change", "reason"},
    ),
    "evaluate": ("EvaluateResult(val ", 1, {"images", "accuracy"}),
    "inspect": (
        "InspectResult(CLIP, 20 layers, 0 mismatches)",
        20,
        {"parameters", "size", "change"},
    ),
    "sweep": ("SweepResult(2 alphas, 0 recipes)", 2, {"val", "<odd>", "id", "ood", "gain"}),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_result_is_short_and_a_table(results: dict[str, Any], name: str) -> None:
    result = results[name]
    start, count, columns = SHOWN[name]
    assert repr(result).startswith(start)
    assert len(repr(result)) < 700
    assert str(result) == repr(result)
    frame = result.to_frame()
    assert count == len(frame)
    assert columns <= set(frame.columns)
    html = result._repr_html_()
    assert html.startswith("<table>")
    assert html.count("<tr>") == len(frame) + 1
    assert "<odd>" not in html  # names are escaped


def test_tables_hold_the_numbers_of_the_records(results: dict[str, Any]) -> None:
    merged, plan = results["merge"], results["plan"]
    assert merged.to_frame()["alpha"].to_dict() == {
        name: layer.alpha for name, layer in plan.layers.items()
    }
    barriers = merged.to_frame()["barrier"].to_dict()
    assert barriers == {
        name: values["barrier"] for name, values in plan.measurements.layers.items()
    }
    assert (
        results["evaluate"].to_frame().loc["val", "accuracy"]
        == results["evaluate"].record["accuracy"]["val"]
    )
    assert merged.plan == merged.plan.with_tensors({})
    assert merged.warnings == tuple(texts_of(merged.record.warnings))
    # the gradients of a measure, which only methods need, are as large as the model
    assert plan.measurements.gradients == merged.plan.measurements.gradients == {}


@pytest.mark.parametrize("name", ["plan", "evaluate"])
def test_without_pandas_a_frame_names_it(
    results: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(clipmerge.UsageError, match="pip install pandas"):
        results[name].to_frame()


def test_a_plan_is_saved_and_loaded_with_its_tensors(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"data": images, "set": {"measure.steps": 2}, **QUIET}
    plan = clipmerge.plan(*pair, "tpgm", **options)
    written = plan.save(tmp_path / "plan.json")
    loaded = clipmerge.Plan.load(tmp_path / "plan.json")
    assert loaded == written
    assert loaded.loaded_tensors.keys() == plan.loaded_tensors.keys()
    assert loaded.folder == tmp_path
    with pytest.raises(clipmerge.OutputError, match="overwrite=True"):
        plan.save(tmp_path / "plan.json")
    plan.save(tmp_path / "plan.json", overwrite=True)
    (tmp_path / "plan.tensors.safetensors").write_bytes(b"")
    with pytest.raises(clipmerge.PlanError, match="the file has changed"):
        clipmerge.Plan.load(tmp_path / "plan.json")
    with pytest.raises(clipmerge.PlanError, match="cannot be read"):
        clipmerge.Plan.load(tmp_path / "none.json")


def test_a_process_that_wrote_nothing_has_an_empty_table(results: dict[str, Any]) -> None:
    other = MergeResult(Path("out"), results["plan"], None)
    assert other.to_frame().empty
    assert repr(other).startswith("MergeResult(")


def test_a_merge_answers_in_python(pair: Folders, images: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": images, "batch_size": 6, **QUIET}
    result = clipmerge.merge(*pair, "wise-ft", output=tmp_path / "merged", **options)
    effect = result.record.effect if result.record else None
    assert effect is not None
    assert result.recommendation == effect.recommendation
    assert result.reason.endswith(".")
    assert f"{advice_text(effect)}. On " in repr(result)
    assert result.reason in repr(result)
    assert repr(result.effect).startswith(f"MergeEffect({effect.recommendation}, ")
    assert f"merged {100 * effect.merged.clean.value:.1f} / " in str(result.effect)
    assert len(repr(result.effect)) < 200
    unmeasured = clipmerge.merge(*pair, "wise-ft", **QUIET)
    assert (unmeasured.recommendation, unmeasured.reason) == (None, "")
