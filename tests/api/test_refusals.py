"""Arguments and checkpoints that Python's functions refuse, and the warnings that take the place of a number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

import clipmerge as api
from clipmerge.api.env import _version
from clipmerge.errors import CheckpointError, UsageError, VerdictError
from clipmerge.progress import Silent
from clipmerge.request import Calibration
from tests.support.command import clipmerge, refused
from tests.support.tiny_clip import save_images
from tests.support.told import Told

Folders = tuple[Path, Path]
QUIET: dict[str, Any] = {"progress": Silent()}


@pytest.fixture
def infinite(pair: Folders, tmp_path: Path) -> Path:
    """A fine-tuned model whose weights are finite, but whose predictions are not."""
    folder = Path(shutil.copytree(pair[1], tmp_path / "infinite"))
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"].fill_(3e38)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_settings_of_the_calibration_are_given_once(pair: Folders, images: Path) -> None:
    asked = Calibration(source=str(images))
    with pytest.raises(UsageError, match=r"data is a Calibration, which holds these settings itself"):
        api.plan(*pair, "wise-ft", data=asked, images=6, **QUIET)
    assert api.plan(*pair, "wise-ft", data=asked, **QUIET)


def test_models_in_memory_are_merged_in_one_process(pair: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [CLIPModel.from_pretrained(folder) for folder in pair]
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UsageError, match=r"merge_models works in one process; under `accelerate launch` use merge"):
        api.merge_models(*models, "wise-ft", **QUIET)


def test_a_model_with_further_weights_is_refused(pair: Folders) -> None:
    """A name that no file of the model has cannot be filled."""
    from clipmerge.api.merge_models import _filled

    model = CLIPModel.from_pretrained(pair[0])
    weights = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    assert not any(bool(value.any()) for value in _filled(model, weights, "keep").state_dict().values())
    with pytest.raises(
        CheckpointError, match=r"CLIPModel: its merged weights have names that the model lacks, such as x"
    ):
        _filled(model, weights | {"x": torch.zeros(1)}, "keep")


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert _version("no-such-package") is None
    assert _version("torch") is not None


def test_tasks_that_cannot_be_measured_are_a_warning(pair: Folders, images: Path, tmp_path: Path) -> None:
    for folder in ("zeroshot", "finetuned"):
        shutil.copyfile(pair[folder == "finetuned"] / "model.safetensors", tmp_path / f"{folder}.safetensors")
    bare = [tmp_path / "zeroshot.safetensors", tmp_path / "finetuned.safetensors"]
    told = Told()
    result = api.merge(*bare, "wise-ft", keep={"other": str(images)}, output=tmp_path / "out", progress=told)
    line = next(line for line in told.lines if line.startswith("the tasks of --keep could not be measured"))
    record = json.loads((tmp_path / "out" / "clipmerge.json").read_text())
    assert line in record["warnings"]
    assert result.path == tmp_path / "out"
    flags = ("-r", "wise-ft", "--keep", f"other={images}", "--strict", "-o", tmp_path / "strict")
    assert "nothing was written (--strict)" in refused(clipmerge("merge", *bare, *flags), VerdictError.exit_code)
    assert not (tmp_path / "strict").exists()


def test_two_names_of_one_point_are_refused(pair: Folders, images: Path) -> None:
    sources: dict[str, Any] = {"id": {"val": str(images)}, "ood": {"far": str(images)}, **QUIET}
    with pytest.raises(UsageError, match=r"--point wise-ft: a recipe has this name"):
        api.sweep(*pair, recipes=["wise-ft"], points={"wise-ft": str(pair[1])}, **sources)


def test_a_curve_without_its_end_warns_of_no_loss(pair: Folders, images: Path, tmp_path: Path) -> None:
    far = save_images(tmp_path / "far", each=2, seed=5)
    result = api.sweep(
        *pair, id={"val": str(images)}, ood={"far": str(far)}, alphas=(0, 0.5), recipes=["wise-ft"], **QUIET
    )
    assert not any("loses" in note for note in result.record["warnings"])
