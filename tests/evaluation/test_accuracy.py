import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPForImageClassification, CLIPModel

from tests.support.command import clipmerge, done, printed, refused
from tests.support.raw_safetensors import edit
from tests.support.tiny_clip import (
    Folders,
    save_captions,
    save_classifiers,
    save_images,
    tiny_processor,
)


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


def test_a_head_of_many_classes_is_right_as_often_as_transformers_says(tmp_path: Path) -> None:
    """The head finds each image by its features; "10" stands before "2" in its configuration."""
    names = tuple("lkjihgfedcba")
    images = save_images(tmp_path / "images", each=1, classes=names)
    zeroshot, finetuned = save_classifiers(tmp_path, names, names)
    assert list(json.loads((finetuned / "config.json").read_text())["id2label"])[2] == "10"
    model = CLIPForImageClassification.from_pretrained(finetuned).eval()
    pictures = [Image.open(images / name / "0.png") for name in names]
    pixels = tiny_processor().image_processor(pictures, return_tensors="pt")
    with torch.no_grad():
        features = model.vision_model(**pixels).last_hidden_state[:, 1:].mean(1)
        model.classifier.weight.copy_(features)
        model.classifier.bias.copy_(-features.square().sum(1) / 2)
        found = model(**pixels).logits.argmax(1).tolist()
    assert [model.config.id2label[row] for row in found] == list(names)
    model.save_pretrained(finetuned)
    output = tmp_path / "merged"
    done("merge", zeroshot, finetuned, "--alpha", 1, "--allow", "unrelated", "-o", output)
    for folder in (finetuned, output):
        assert printed("evaluate", folder, "--data", images)["accuracy"] == {"images": 1.0}


@pytest.mark.parametrize("data", ["classes", "captions"])
@pytest.mark.parametrize("tower", ["visual_projection", "text_projection"])
def test_scores_that_are_not_finite_are_no_answers(
    copies: Folders, images: Path, tmp_path: Path, data: str, tower: str
) -> None:
    """Of NaN, argmax made the first class, which some of the images have."""
    weight = load_file(copies[0] / "model.safetensors")[f"{tower}.weight"]
    edit(copies[0], **{f"{tower}__weight": torch.full_like(weight, 3e38)})
    source = images if data == "classes" else save_captions(tmp_path / "captioned", each=2)
    told = refused(clipmerge("evaluate", copies[0], "--data", source, "--allow", "at-chance"))
    assert str(source) in told
    assert "scores are NaN or infinite" in told
