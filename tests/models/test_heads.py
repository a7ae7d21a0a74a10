"""Image towers with a head of three libraries: logits of their own forward at points of the path, and
learning on them."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPForImageClassification

import clipmerge
from clipmerge.checkpoint import align_checkpoints, open_checkpoint
from clipmerge.distributed import DistributedContext
from clipmerge.errors import DataError
from clipmerge.evaluation.accuracy import load_model
from clipmerge.images.batches import Batch
from clipmerge.learning.interpolate import WeightPath
from clipmerge.learning.objective import Labelled, Objective
from clipmerge.measures.learned_coefficients import learned_coefficients
from clipmerge.models.building import build_model
from clipmerge.models.classifier import classifier_for
from clipmerge.types import CHECKS
from tests.support.image_files import load_images, png
from tests.support.raw_safetensors import edit_json
from tests.support.tiny_clip import tiny_config, tiny_processor
from tests.support.tiny_open_clip import build, model_config, save
from tests.support.told import Told

CLASSES, SIDE = 3, 32
#: Both ends, and the logits that the library's own models have for pixels at an alpha.
Pair = tuple[Path, Path, Callable[[float, Tensor], Tensor]]


def stirred(model: nn.Module) -> nn.Module:
    other = deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return other


def between(first: nn.Module, second: nn.Module, alpha: float) -> nn.Module:
    model = deepcopy(first)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    with torch.no_grad():
        for parameter, (zero, fine) in zip(model.parameters(), pairs, strict=True):
            parameter.copy_(zero + alpha * (fine - zero))
    return model


def of_transformers(folder: Path) -> Pair:
    config = tiny_config()
    config.num_labels = CLASSES
    first = CLIPForImageClassification(config).eval()
    second = stirred(first)
    for name, model in (("zeroshot", first), ("finetuned", second)):
        model.save_pretrained(folder / name)  # type: ignore[operator]
        tiny_processor().image_processor.save_pretrained(folder / name)
    return (
        folder / "zeroshot",
        folder / "finetuned",
        lambda alpha, pixels: between(first, second, alpha)(pixel_values=pixels).logits,
    )


def of_timm(folder: Path) -> Pair:
    small = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    name = "vit_base_patch32_clip_224"
    first = timm.create_model(name, num_classes=CLASSES, **small).eval()
    second = stirred(first)
    config = {
        "architecture": name,
        "num_classes": CLASSES,
        "model_args": small,
        "pretrained_cfg": {"input_size": [3, SIDE, SIDE]},
    }
    for end, model in (("zeroshot", first), ("finetuned", second)):
        (folder / end).mkdir()
        save_file(model.state_dict(), folder / end / "model.safetensors")
        (folder / end / "config.json").write_text(json.dumps(config))
    return (
        folder / "zeroshot",
        folder / "finetuned",
        lambda alpha, pixels: between(first, second, alpha)(pixels),
    )


def of_wise_ft(folder: Path) -> Pair:
    """The state dict of a tower and a head beside a whole model without one: the head stays."""
    model = build(model_config())
    zeroshot = save(model, model_config(), folder / "zeroshot")
    visual, head = stirred(model.visual), nn.Linear(16, CLASSES)
    stored = {f"image_encoder.model.visual.{k}": v for k, v in visual.state_dict().items()}
    stored["image_encoder.model.token_embedding.weight"] = torch.ones(4, 32)  # of the text tower
    stored |= {f"classification_head.{k}": v.detach() for k, v in head.state_dict().items()}
    torch.save(stored, folder / "checkpoint_10.pt")

    def logits(alpha: float, pixels: Tensor) -> Tensor:
        features = between(model.visual, visual, alpha)(pixels)
        found: Tensor = head(normalize(features, dim=-1))
        return found

    assert isinstance(model, open_clip.CLIP)
    return zeroshot, folder / "checkpoint_10.pt", logits


@pytest.mark.parametrize("make", [of_transformers, of_timm, of_wise_ft])
def test_a_head_gives_the_librarys_logits_and_learns(
    tmp_path: Path, make: Callable[[Path], Pair]
) -> None:
    torch.manual_seed(0)
    zeroshot, finetuned, reference = make(tmp_path)
    inputs = align_checkpoints(open_checkpoint(str(zeroshot)), [open_checkpoint(str(finetuned))])
    model = build_model(inputs)
    context = DistributedContext("cpu")
    path = WeightPath(model, inputs, context.device)
    images = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "grey", "blue")]
    pixels = model.pixels(images * 3)
    assert pixels.shape == (12, 3, SIDE, SIDE)
    classifier = model.classifier("here", ("a", "b", "c"), ())
    with torch.no_grad():
        for alpha in (0.0, 0.5, 1.0):
            path.set_alpha(alpha)
            found = classifier.logits(model.image_features(pixels), classifier.class_features())
            assert torch.allclose(found, reference(alpha, pixels), atol=1e-5), alpha
        output = tmp_path / "merged"
        clipmerge.merge(zeroshot, finetuned, "wise-ft", alpha=1, allow=CHECKS, output=output)
        alone = load_model(open_checkpoint(str(output)))
        rows = alone.classifier("here", ("a", "b", "c"), ())
        scores = rows.logits(alone.image_features(pixels), rows.class_features())
        assert torch.allclose(scores, reference(1.0, pixels), atol=1e-5)
        several = model.classifier("here", ("a", "b"), [(0, 2), (1,)])
        grouped = several.logits(model.image_features(pixels), several.class_features())
        assert torch.equal(grouped, torch.stack([found[:, [0, 2]].amax(1), found[:, 1]], 1))
    labels = torch.tensor([2, 0])
    assert classifier.draw(labels, 0, 1) == (None, labels)  # its rows cost nothing
    with pytest.raises(DataError, match="has 5 classes, and the model's head 3"):
        model.classifier("here", tuple("abcde"), ())
    batch = Batch(0, pixels + 0.3 * torch.randn(pixels.shape), torch.arange(12) % CLASSES)
    objective = Objective(
        path, classifier, batch, context, batch_size=6, val=Labelled(batch, classifier)
    )
    losses = learned_coefficients(objective, steps=4, lr=0.1, batch_size=6)
    assert all(0 < loss < 10 for loss in losses.trace["cross_entropy"])
    moved = [float((value - 0.5).abs().max()) for value in losses.coefficients.values()]
    assert max(moved) > 0.05
    assert losses.choice is not None


@pytest.mark.parametrize("given", [None, ["Five", "four", "two"], ["two", "five", "four"]])
def test_classes_meet_the_rows_of_their_names(tmp_path: Path, given: list[str] | None) -> None:
    """Folders are sorted by name and the head's rows are not; names in any order are matched."""
    torch.manual_seed(0)
    zeroshot, finetuned, _ = of_transformers(tmp_path)
    for folder in (zeroshot, finetuned):
        edit_json(folder / "config.json", id2label={"0": "two", "1": "five", "2": "Four"})
    for name in ("five", "four", "two"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "x.png").write_bytes(png(0))
    images = load_images(str(tmp_path / "images"), given)
    inputs = align_checkpoints(open_checkpoint(str(zeroshot)), [open_checkpoint(str(finetuned))])
    model = build_model(inputs)
    features = torch.randn(4, 32)
    by_row = model.classifier("here", ("x", "y", "z"), ())
    by_name = classifier_for(model, images, ("{}",), torch.device("cpu"))
    rows = by_row.logits(features, by_row.class_features())
    found = by_name.logits(features, by_name.class_features())
    assert torch.equal(found, rows[:, [1, 2, 0]])


def test_a_zero_shot_head_is_built_where_models_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    zeroshot, finetuned, _ = of_wise_ft(tmp_path)
    options = {"classes": ("ant", "bee", "cow"), "template": ("a {}.", "{}"), "device": "cpu"}
    plan = clipmerge.plan(zeroshot, finetuned, "wise-ft", allow=CHECKS, **options)
    assert plan.head is not None
    assert plan.head.device == "cpu"
    told = Told()
    for device in ("cpu", "xpu"):
        elsewhere = plan.replace(head=plan.head.replace(device=device))
        clipmerge.apply(elsewhere, output=tmp_path / device, allow=CHECKS, progress=told)
    assert len([line for line in told.lines if "was built on xpu" in line]) == 1
    weights = [
        load_file(tmp_path / device / "open_clip_model.safetensors") for device in ("cpu", "xpu")
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
