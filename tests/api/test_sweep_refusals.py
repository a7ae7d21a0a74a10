"""Sweeps that are refused, and images that are used twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from clipmerge.api.sweep import check_sweep, run_sweep
from clipmerge.errors import CheckpointError, RecipeError, UsageError
from clipmerge.request import Calibration, SweepRequest
from tests.api.test_sweep import Counting, request_for
from tests.support.tiny_clip import save_images


def test_weights_that_are_not_finite_are_named(
    far: tuple[Path, Path], images: Path, shifted: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    broken = tmp_path / "broken"
    shutil.copytree(far[1], broken)
    weights = load_file(broken / "model.safetensors")
    weights["visual_projection.weight"][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"visual_projection\.weight holds NaN"):
        run_sweep(request_for((far[0], broken), images, shifted))


@pytest.mark.parametrize("kind", ["the same folder", "hard link", "copy"])
def test_ood_images_among_the_calibration_images_are_refused(
    far: tuple[Path, Path], images: Path, calibration: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ood = calibration
    if kind != "the same folder":
        ood = save_images(tmp_path / "ood", each=4, seed=9)
        source, target = calibration / "cat" / "2.png", ood / "bird" / "other.png"
        if kind == "copy":
            shutil.copyfile(source, target)
        else:
            target.hardlink_to(source)
    measured = Counting(monkeypatch)
    request = request_for(far, images, ood, "straggler-outlier", calibration=Calibration(source=str(calibration)))
    count = "18 images are" if kind == "the same folder" else "1 image is"
    with pytest.raises(UsageError, match=f"--ood shifted: {count} also in the calibration source"):
        run_sweep(request)
    assert not measured.batches


def test_digits_against_digits_are_refused(far: tuple[Path, Path], images: Path) -> None:
    request = request_for(far, images, Path("digits"), calibration=Calibration(source="digits"))
    with pytest.raises(UsageError, match="not out of distribution"):
        run_sweep(request)


def test_images_used_twice_are_noted(far: tuple[Path, Path], images: Path, calibration: Path) -> None:
    request = request_for(far, images, images)
    assert any("30 images are also in --id val" in note for note in run_sweep(request)[0]["warnings"])
    request = request_for(far, calibration, images, calibration=Calibration(source=str(calibration)))
    assert any("flatters" in note for note in run_sweep(request)[0]["warnings"])


def test_a_recipe_that_measures_needs_data(far: tuple[Path, Path], images: Path, shifted: Path) -> None:
    with pytest.raises(UsageError, match="straggler-outlier' measures"):
        check_sweep(request_for(far, images, shifted, "straggler-outlier"))


def test_contradictions_are_refused(far: tuple[Path, Path], images: Path, shifted: Path) -> None:
    with pytest.raises(UsageError, match="two recipes are named 'lines'"):
        check_sweep(request_for(far, images, shifted, "lines", "lines"))
    with pytest.raises(UsageError, match="two different values"):
        check_sweep(request_for(far, images, shifted, alphas=(0.5, 0.5)))
    with pytest.raises(UsageError, match="both have a source named 'val'"):
        check_sweep(SweepRequest("a", "b", {"val": "x"}, {"val": "y"}))
    with pytest.raises(UsageError, match="at least one"):
        check_sweep(SweepRequest("a", "b", {"val": "x"}, {}))
    with pytest.raises(RecipeError, match="no recipe"):
        request_for(far, images, shifted, "nothing")
