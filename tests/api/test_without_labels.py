"""Images without labels: the fine-tuned model's answers stand in for them, and every face says so."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

import clipmerge as clipmerge_package
from clipmerge.errors import DataError
from clipmerge.report.text import answer_text, reason_text
from tests.support.command import clipmerge, done, refused
from tests.support.tiny_clip import Folders, save_images

NAMES = ("bird", "cat", "dog")
UNKNOWN = "whether the class names are those of fine-tuning, cannot be known."


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of 60 images."""
    folder = tmp_path_factory.mktemp("flat") / "flat"
    folder.mkdir()
    files = sorted(save_images(folder.parent / "classes", each=20, seed=7).rglob("*.png"))
    for number, file in enumerate(files):
        shutil.copyfile(file, folder / f"{number:02d}.png")
    return folder


def answers(model_folder: Path, folder: Path) -> np.ndarray:
    """The best class of each image, by transformers alone."""
    model = CLIPModel.from_pretrained(model_folder).eval()
    processor = CLIPProcessor.from_pretrained(model_folder)
    images = [Image.open(file).convert("RGB") for file in sorted(folder.glob("*.png"))]
    prompts = [f"a photo of a {name}." for name in NAMES]
    inputs = processor(text=prompts, images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        return model(**inputs).logits_per_image.argmax(dim=-1).numpy()


@pytest.mark.slow
def test_accuracy_is_agreement_with_the_finetuned_model(
    far: Folders, flat: Path, tmp_path: Path
) -> None:
    effect = clipmerge_package.merge(
        *map(str, far),
        "wise-ft",
        data=str(flat),
        classes=NAMES,
        set={"method.alpha": 0.9},
        output=tmp_path / "merged",
    ).effect
    assert effect is not None
    finetuned, merged, zeroshot = (
        answers(folder, flat) for folder in (far[1], tmp_path / "merged", far[0])
    )
    assert 0 < (merged == finetuned).mean() < 1
    assert not effect.labelled
    assert effect.images == 60
    assert effect.finetuned[0].clean.value == 1
    assert effect.merged.clean.value == pytest.approx((merged == finetuned).mean())
    assert effect.zeroshot.clean.value == pytest.approx((zeroshot == finetuned).mean())
    assert "60 held-out images without labels" in answer_text(effect)
    assert reason_text(effect).endswith(UNKNOWN)


@pytest.mark.slow
def test_auto_learns_without_labels_and_says_so_on_all_faces(
    far: Folders, flat: Path, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    merge = ["merge", *far, "--data", flat, "--classes", names, "--set", "measure.steps=3"]
    found = done(*merge, "--output", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "clipmerge.json").read_text())
    assert record["recipe"]["name"] == "auto"
    assert record["calibration"]["labelled"] is False
    assert record["effect"]["labelled"] is False
    for text in (
        found.out.replace("\n", " "),
        (tmp_path / "out" / "report.html").read_text(),
        (tmp_path / "out" / "README.md").read_text(),
    ):
        assert UNKNOWN in " ".join(text.split())
        assert "accuracy, %" not in text
    for name in ("report.html", "README.md"):
        assert "agreement with fine-tuned, %" in (tmp_path / "out" / name).read_text()


def test_class_names_are_needed_and_several_models_would_contradict(
    far: Folders, flat: Path, tmp_path: Path
) -> None:
    merge = ["merge", *far, "--recipe", "wise-ft", "--data", flat, "--output", tmp_path / "out"]
    said = refused(clipmerge(*merge))
    assert "for images without labels give the class names with --classes" in said
    again = shutil.copytree(far[1], tmp_path / "again")
    with pytest.raises(DataError, match="several fine-tuned models would give different ones"):
        clipmerge_package.merge(
            str(far[0]),
            [str(far[1]), str(again)],
            "wise-ft",
            data=str(flat),
            classes=NAMES,
        )
