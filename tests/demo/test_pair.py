"""The demo: its folder of models and images, and the table of its merges."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from clipmerge.api import demo as of_the_api
from clipmerge.api.merge import merge
from clipmerge.demo import data as demo_data
from clipmerge.demo import pair as demo
from clipmerge.demo.pair import prepare
from clipmerge.images.digits import read_digits
from tests.support.command import done, printed


def test_splits_are_disjoint_and_cover_all_images() -> None:
    everything, digits = read_digits()
    parts = [demo_data.digits_of_split(split) for split in ("train", "calibration", "test")]
    assert [len(ink) for ink, _ in parts] == [700, 697, 400]
    # two writers may draw the same digit, so images are compared as multisets
    joined = torch.cat([ink for ink, _ in parts]).flatten(1)
    assert sorted(map(bytes, joined.numpy())) == sorted(map(bytes, everything.flatten(1).numpy()))
    assert torch.equal(torch.cat([labels for _, labels in parts]).bincount(), digits.bincount())


def test_the_headline_is_computed_from_the_table() -> None:
    accuracy = {
        "zero-shot": {"clean": 0.902, "noise": 0.8, "blur": 0.62},
        "fine-tuned": {"clean": 0.975, "noise": 0.7, "blur": 0.42},
        "auto": {"clean": 0.960, "noise": 0.82, "blur": 0.54},
    }
    accuracy["wise-ft"] = {"clean": 0.970, "noise": 0.75, "blur": 0.5}
    assert of_the_api.headline(accuracy) == (
        "auto keeps 96.0 of the 97.5% clean accuracy, and gets back 12 of the 15 points that"
        " fine-tuning lost under shift."
    )


@pytest.mark.parametrize("damage", ["", "{"])
def test_a_finished_folder_is_used_again_and_a_damaged_one_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    build = Mock(side_effect=lambda folder: (folder / "weights").touch())
    monkeypatch.setattr(demo, "_write_models_and_images", build)
    folder = tmp_path / "demo"
    prepare(folder)
    (folder / "merged").touch()
    if damage:
        (folder / "manifest.json").write_text(damage)
    prepare(folder)
    assert build.call_count == (2 if damage else 1)
    assert (folder / "merged").exists() is not bool(damage)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.slow
def test_it_merges_by_each_recipe_into_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_learning = Mock(
        side_effect=lambda z, f, _, data, **options: merge(z, f, "wise-ft", **options)
    )
    monkeypatch.setattr(of_the_api, "merge", without_learning)
    monkeypatch.setattr(
        of_the_api, "evaluate", lambda _, sources, **how: Mock(accuracy=dict.fromkeys(sources, 0.5))
    )
    for _ in range(2):  # the second run replaces the outputs of the first one
        ended = done("demo", "--output", tmp_path / "demo")
    recipes = [call.args[2] for call in without_learning.call_args_list[:3]]
    heads, *rows = ended.out.splitlines()[:6]
    assert heads.split()[2:] == ["clean", *demo_data.SHIFTS, "mean", "shifted", "seconds"]
    assert [row.split()[0] for row in rows] == ["zero-shot", "fine-tuned", *recipes]
    assert all(int(row.split()[-1]) >= 0 for row in rows[2:])
    assert "wise-ft keeps 50.0 of the 50.0% clean accuracy" in ended.out
    report = tmp_path / "demo" / "merged-wise-ft" / "report.html"
    assert "Under known shifts" in report.read_text("utf-8")


@pytest.mark.nightly
def test_merging_gets_back_what_fine_tuning_lost() -> None:
    accuracy = printed("demo")["accuracy"]
    page = Path(__file__).parents[2] / "docs" / "tutorials" / "first-merge.md"
    table = page.read_text(encoding="utf-8").partition("accuracy, %       clean")[2]
    shown = {
        cells[0]: [float(cell) for cell in cells[1:6]]
        for cells in map(str.split, table.splitlines()[1:6])
    }
    assert accuracy.keys() == shown.keys()
    # processors round what is learned, which may move four answers of 400
    for model, sources in accuracy.items():
        assert [100 * value for value in sources.values()] == pytest.approx(shown[model], abs=1.01)
    means = {model: of_the_api.mean_shifted(of) for model, of in accuracy.items()}
    assert means["fine-tuned"] < means["zero-shot"] - 0.1
    assert means["auto"] > means["wise-ft"] > means["fine-tuned"]
