import shutil
from pathlib import Path

import pytest
import torch
from clipmerge.request import Calibration, parse_named, parse_named_source
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPProcessor

from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import UsageError
from clipmerge.evaluation.accuracy import evaluate_sources, load_model
from clipmerge.images.dataset import open_images
from clipmerge.progress import Progress
from tests.support.command import clipmerge, refused
from tests.support.tiny_clip import CLASSES, Folders, save_images


def accuracy_by_hand(folder: Path, images: Path, templates: tuple[str, ...]) -> float:
    """One image at a time, one class at a time, through transformers' own forward."""
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    right = total = 0
    for path in sorted(images.glob("*/*.png")):
        scores = []
        for name in CLASSES:
            prompts = [template.replace("{}", name) for template in templates]
            inputs = processor(
                text=prompts,
                images=Image.open(path).convert("RGB"),
                return_tensors="pt",
                padding=True,
            )
            with torch.no_grad():
                output = model(**inputs)
            mean = output.text_embeds.mean(dim=0)
            scores.append(float(output.image_embeds[0] @ (mean / mean.norm())))
        right += CLASSES[scores.index(max(scores))] == path.parent.name
        total += 1
    return right / total


@pytest.mark.parametrize(
    "templates", [("a photo of a {}.",), ("a photo of a {}.", "an old {}", "{}")]
)
def test_accuracy_is_that_of_the_obvious_loop(
    pair: Folders, images: Path, templates: tuple[str, ...]
) -> None:
    record = evaluate_sources(
        load_model(open_checkpoint(str(pair[1]))),
        {"val": open_images(str(images))},
        Calibration(device="cpu", templates=templates, batch_size=7),
        Progress(),
    )
    assert record["images"] == {"val": 30}
    assert record["accuracy"]["val"] == pytest.approx(accuracy_by_hand(pair[1], images, templates))


def test_what_is_no_whole_checkpoint_is_refused(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "weights.safetensors"
    bare.write_bytes((pair[0] / "model.safetensors").read_bytes())
    CLIPModel.from_pretrained(pair[1]).vision_model.save_pretrained(tmp_path / "tower")
    for checkpoint, told in (
        (bare, "no config.json beside it says"),
        (tmp_path / "tower", "holds the vision tower only, which has no zero-shot classes"),
    ):
        assert told in refused(clipmerge("evaluate", checkpoint, "--data", images))
    shutil.copytree(pair[1], tmp_path / "broken")
    weights = load_file(pair[1] / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, tmp_path / "broken" / "model.safetensors")
    assert "NaN" in refused(clipmerge("evaluate", tmp_path / "broken", "--data", images))
    few = save_images(tmp_path / "images", each=2, classes=("bird",))
    line = refused(clipmerge("evaluate", pair[0], "--data", few))
    assert line.endswith("images: has one class; measuring needs at least two")


def test_a_source_without_a_name_is_called_after_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "val" / "lr=0.1" / "dev").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "val")
    for text, name, source in (
        ("lr=0.1/dev", "dev", "lr=0.1/dev"),
        ("data/val", "val", "data/val"),
        ("x=data/val=1", "x", "data/val=1"),
        (".", "val", "."),
        ("..", tmp_path.name, ".."),
        ("/", "/", "/"),
    ):
        assert parse_named_source(text) == (name, source)
    for text in ("", "a=", "a= "):
        with pytest.raises(UsageError, match=f"'{text}': names no images; write NAME=SOURCE"):
            parse_named_source(text)
    with pytest.raises(UsageError, match="same name"):
        parse_named("--data", ["a=x", "a=y"])
