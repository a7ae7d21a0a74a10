"""Image towers with a head of three libraries: logits of their own forward at points of the path, and
learning on them."""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize
from transformers import CLIPForImageClassification

import clipmerge
from clipmerge.checkpoint import open_checkpoint
from clipmerge.distributed import DistributedContext
from clipmerge.errors import DataError
from clipmerge.evaluation.accuracy import load_model
from clipmerge.images.batches import Batch
from clipmerge.learning.interpolate import WeightPath
from clipmerge.learning.objective import Labelled, Objective
from clipmerge.measures.learned_coefficients import learned_coefficients
from clipmerge.models import ImageTextModel
from clipmerge.models.building import build_model
from clipmerge.models.classifier import Head, classifier_for
from clipmerge.types import CHECKS
from tests.support.image_files import load_images
from tests.support.tasks import inputs_of
from tests.support.tiny_clip import save_classifiers, save_images, stir
from tests.support.tiny_open_clip import build, model_config, save
from tests.support.told import Told

CLASSES, SIDE = 3, 32
#: Both ends, and the logits that the library's own models have for pixels at an alpha.
Pair = tuple[Path, Path, Callable[[float, Tensor], Tensor]]


def stirred(model: nn.Module) -> nn.Module:
    other = deepcopy(model)
    stir(other, 0.1)
    return other


def at(alpha: float, ends: Sequence[nn.Module], *pixels: Tensor, **named: Tensor) -> Any:
    """The output of the library's model between two."""
    first, second = ends
    pairs = zip(first.named_parameters(), second.parameters(), strict=True)
    weights = {name: zero + alpha * (fine - zero) for (name, zero), fine in pairs}
    return functional_call(first, weights, pixels, named)


def of_transformers(folder: Path) -> Pair:
    zeroshot, finetuned = save_classifiers(folder, *2 * [("two", "five", "Four")])
    kind = CLIPForImageClassification
    ends = [kind.from_pretrained(path).eval() for path in (zeroshot, finetuned)]
    return zeroshot, finetuned, lambda alpha, pixels: at(alpha, ends, pixel_values=pixels).logits


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
        lambda alpha, pixels: at(alpha, (first, second), pixels),
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
        features = at(alpha, (model.visual, visual), pixels)
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
    inputs = inputs_of((zeroshot, finetuned))
    model = build_model(inputs)
    context = DistributedContext("cpu")
    path = WeightPath(model, inputs, context.device)
    images = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "grey", "blue")]
    pixels = model.pixels(images * 3)
    assert pixels.shape == (12, 3, SIDE, SIDE)

    def logits(model: ImageTextModel, names: Sequence[str] = "abc", rows: Any = ()) -> Tensor:
        classifier = Head(model, model.head, "here", tuple(names), rows)
        found: Tensor = classifier.logits(model.image_features(pixels), classifier.class_features())
        return found

    with torch.no_grad():
        for alpha in (0.0, 0.5, 1.0):
            path.set_alpha(alpha)
            found = logits(model)
            assert torch.allclose(found, reference(alpha, pixels), atol=1e-5), alpha
        output = tmp_path / "merged"
        clipmerge.merge(zeroshot, finetuned, "wise-ft", alpha=1, allow=CHECKS, output=output)
        alone = load_model(open_checkpoint(str(output)))
        assert torch.allclose(logits(alone), reference(1.0, pixels), atol=1e-5)
        grouped = logits(model, "ab", [(0, 2), (1,)])
        assert torch.equal(grouped, torch.stack([found[:, [0, 2]].amax(1), found[:, 1]], 1))
    with pytest.raises(DataError, match="has 5 classes, and the model's head 3"):
        logits(model, "abcde")
    classifier = Head(model, model.head, "here", tuple("abc"))
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
    zeroshot, *_ = of_transformers(tmp_path)
    folder = save_images(tmp_path / "images", each=1, classes=("five", "four", "two"))
    images = load_images(folder, given)
    model = load_model(open_checkpoint(str(zeroshot)))
    features = torch.randn(4, 32)
    by_row = Head(model, model.head, "here", tuple("xyz"))
    by_name = classifier_for(model, images, ("{}",), torch.device("cpu"))
    rows, found = (each.logits(features, each.class_features()) for each in (by_row, by_name))
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
