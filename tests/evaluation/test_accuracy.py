import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPProcessor

from clipmerge import evaluate
from tests.support.command import clipmerge, refused
from tests.support.tiny_clip import CLASSES, Folders


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
    found = evaluate(
        str(pair[1]), {"val": str(images)}, template=list(templates), batch_size=7, device="cpu"
    )
    assert found.images == {"val": 30}
    assert found.accuracy["val"] == pytest.approx(accuracy_by_hand(pair[1], images, templates))


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
