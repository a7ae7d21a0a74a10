"""The sweep: the same accuracies as `evaluate`, the same decisions as `merge`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipmerge
from clipmerge import ClipmergeError, OutputError, Progress
from tests.support.command import printed
from tests.support.tiny_clip import Folders, save_images

QUIET: dict[str, Any] = {"progress": Progress(), "allow": "at-chance"}


def test_points_are_as_accurate_as_the_merges_that_they_stand_for(
    far: Folders, images: Path, shifted: Path, tmp_path: Path
) -> None:
    sources = {"val": images, "odd": shifted}
    record = printed(
        *("sweep", *far, "--id", f"val={images}", "--ood", f"odd={shifted}"),
        *("--alphas", "0,0.5,1", "-r", "wise-ft", "-r", "monosoup"),
        *("--point", f"other={far[1]}", "--allow", "at-chance", "-o", tmp_path / "out"),
    )
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == record
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "sweep.json",
        "sweep.html",
        "sweep.png",
    }
    assert next(iter(record)) == "answer"
    wise, mono = record["recipes"]
    curve = {row["alpha"]: row for row in record["curve"]}
    assert wise["accuracy"] == curve[0.5]["accuracy"]
    assert wise["gain"]["shift"]["value"] <= 0  # it is on the curve
    assert (record["target"], record["shift"], record["task"]) == (["val"], ["odd"], [])
    clipmerge.merge(*far, "monosoup", output=tmp_path / "mono", **QUIET)
    for folder, row in (
        (far[0], curve[0]),
        (far[1], curve[1]),
        (far[1], record["points"][0]),
        (tmp_path / "mono", mono),
    ):
        found = clipmerge.evaluate(folder, sources, **QUIET)
        assert row["accuracy"] == found.accuracy


def test_an_earlier_sweep_is_replaced_and_a_foreign_file_kept(
    pair: Folders, images: Path, shifted: Path, tmp_path: Path
) -> None:
    options = {"id": {"v": images}, "ood": {"o": shifted}, "output": tmp_path / "out", **QUIET}
    clipmerge.sweep(*pair, alphas=[0, 1], **options)
    with pytest.raises(OutputError, match="already exists"):
        clipmerge.sweep(*pair, alphas=[0, 1], **options)
    clipmerge.sweep(*pair, alphas=[0, 0.5, 1], overwrite=True, **options)
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [point["alpha"] for point in record["curve"]] == [0, 0.5, 1]
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"also holds thesis\.tex"):
        clipmerge.sweep(*pair, alphas=[0, 1], overwrite=True, **options)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_a_recipe_decides_as_in_a_merge(far: Folders, images: Path, shifted: Path) -> None:
    options = {"data": images, "images": 20, "set": {"measure.steps": 2}, **QUIET}
    swept = clipmerge.sweep(
        *far, id={"v": images}, ood={"o": shifted}, recipes=["auto"], alphas=[0, 1], **options
    )
    record = clipmerge.merge(*far, "auto", **options).record
    assert record is not None
    assert record.calibration is not None
    (row,) = swept.record["recipes"]
    assert row["calibration"] == record.calibration.model_dump(mode="json")
    assert swept.correct["o"].shape == (len(swept.record["curve"]) + 1, 21)
    assert row["accuracy"]["o"] == pytest.approx(np.mean(swept.correct["o"][-1]))


def test_a_recipe_is_judged_by_its_own_limit(far: Folders, images: Path, shifted: Path) -> None:
    learned = {"name": "learned-coefficients", "steps": 1, "max_loss": 20}
    recipe = {"measure": learned, "method": {"name": "wise-ft", "alpha": 0.8}}
    options: dict[str, Any] = {"recipes": recipe, "data": images, "alphas": [0.8, 1], **QUIET}
    exceeds = {}
    for limit in (None, 9, 11):
        swept = clipmerge.sweep(*far, id=images, ood=shifted, max_loss=limit, **options)
        rows = (*swept.record["recipes"], swept.record["curve"][0])
        exceeds[limit] = [row["exceeds_max_loss"] for row in rows]
    # both lose ten points
    assert exceeds == {None: [False, True], 9: [True, True], 11: [False, False]}


def test_images_on_both_sides_are_told(pair: Folders, images: Path, tmp_path: Path) -> None:
    other = save_images(tmp_path / "other", seed=1)
    swept = clipmerge.sweep(*pair, id={"v": other}, ood={"o": images}, data=images, **QUIET)
    assert not swept.warnings  # no recipe looks at them
    options: dict[str, Any] = {"recipes": ["monosoup"], "data": images, **QUIET}
    swept = clipmerge.sweep(*pair, id={"v": other}, ood={"o": images}, **options)
    assert [warning for warning in swept.warnings if "also in" in warning]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no shift": ({"ood": {}}, "at least one `id` and one `ood`"),
    "set without recipes": ({"set": {"method.alpha": 1}}, "there are none"),
    "one recipe twice": ({"recipes": ["lines", "lines"]}, "are named 'lines'"),
    "no images": ({"id": {"v": "nowhere"}}, "nowhere: no such folder"),
    **{
        f"alphas {text!r}": ({"alphas": text}, "^`alphas` .*: expected two or more finite numbers")
        for text in ("a", "0,1e400", [1, 0])
    },
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused(pair: Folders, tmp_path: Path, what: str) -> None:
    options, said = REFUSED[what]
    given = {"id": {"v": "digits"}, "ood": {"o": "digits"}, "output": tmp_path / "out"} | options
    with pytest.raises(ClipmergeError, match=said):
        clipmerge.sweep(*pair, **given, **QUIET)
    assert not list(tmp_path.iterdir())
