"""Answers that are found in bfloat16 are those of float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from clipmerge.checkpoint import open_checkpoint
from clipmerge.evaluation import bf16_classifier
from clipmerge.evaluation.accuracy import load_model
from clipmerge.evaluation.bf16_classifier import COMPARED, Bf16Classifier
from clipmerge.models import ImageTextModel, Prefix
from clipmerge.models.zero_shot import class_embeddings
from tests.support.small_objective import save_ends

CLASSES = tuple(letter * 2 for letter in "abcdefghij")


class Counting:
    """A model, and how many images it embedded in either precision; bfloat16 may be made worse than it is."""

    def __init__(self, model: ImageTextModel, noise: float = 0.0) -> None:
        self.model, self.noise = model, noise
        self.exact = self.quick = 0

    def image_features(self, pixels: Tensor, prefix: Prefix | None = None) -> Tensor:
        features = self.model.image_features(pixels, prefix)
        if not torch.is_autocast_enabled("cpu"):
            self.exact += len(pixels)
            return features
        self.quick += len(pixels)
        return features + self.noise * torch.randn(features.shape, generator=torch.Generator().manual_seed(self.quick))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ImageTextModel:
    return load_model(open_checkpoint(str(save_ends(tmp_path_factory.mktemp("ends"))[0])))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16_classifier, "multiplies_bfloat16", lambda _device: True)


def pictures(count: int) -> Tensor:
    """One colour each: the mean of noise would look the same to the model in all of them."""
    colours = torch.randn(count, 3, 1, 1, generator=torch.Generator().manual_seed(5))
    return (3 * colours).expand(-1, -1, 32, 32)


def answers(model: ImageTextModel, pixels: Tensor, classes: Tensor) -> Tensor:
    return (model.image_features(pixels) @ classes.T).argmax(dim=1)


@torch.inference_mode()
def test_answers_are_those_of_float32(model: ImageTextModel) -> None:
    counting, pixels = Counting(model, noise=0.001), pictures(300)
    classes = class_embeddings(model, CLASSES, ("a {}.",), "cpu")
    one = Bf16Classifier(counting, classes, 64)  # type: ignore[arg-type]
    found = torch.cat([one.classify(part) for part in pixels.split(100)])
    assert torch.equal(found, answers(model, pixels, classes))
    assert counting.quick == 300
    assert COMPARED < counting.exact < 200  # some were in doubt, and most were not


@torch.inference_mode()
def test_bfloat16_is_given_up_where_it_decides_nothing(model: ImageTextModel) -> None:
    counting, pixels = Counting(model, noise=1.0), pictures(200)
    classes = class_embeddings(model, CLASSES, ("a {}.",), "cpu")
    one = Bf16Classifier(counting, classes)  # type: ignore[arg-type]
    found = torch.cat([one.classify(part) for part in pixels.split(50)])
    assert torch.equal(found, answers(model, pixels, classes))
    assert counting.quick == 50


@torch.inference_mode()
def test_a_single_class_needs_no_second_look(model: ImageTextModel) -> None:
    classes = class_embeddings(model, ("only",), ("a {}.",), "cpu")
    assert Bf16Classifier(model, classes).classify(pictures(3)).tolist() == [0, 0, 0]


def test_shared_weights_are_set_again_after_something_else_moved_them(tmp_path: Path) -> None:
    from clipmerge.checkpoint import align_checkpoints
    from clipmerge.evaluation.moving_model import MovingModel
    from clipmerge.models.building import build_model

    paths = [str(path) for path in save_ends(tmp_path, moves=("vision_model",))]
    pair = align_checkpoints(open_checkpoint(paths[0]), [open_checkpoint(paths[1])])
    moving = MovingModel(build_model(pair), pair, torch.device("cpu"))
    name = "text_model.final_layer_norm.weight"
    moving.interpolate(0.5)
    before = moving.text_version
    moving.interpolate(1.0)
    assert moving.text_version == before
    with torch.no_grad():
        moving._set(name, moving.model.parameters[name] + 1)
    moving.interpolate(0.5)
    assert torch.equal(moving.model.parameters[name], pair.theta_0(name))


@torch.inference_mode()
def test_few_images_are_all_compared(model: ImageTextModel) -> None:
    counting, pixels = Counting(model, noise=0.001), pictures(COMPARED)
    classes = class_embeddings(model, CLASSES, ("a {}.",), "cpu")
    one = Bf16Classifier(counting, classes)  # type: ignore[arg-type]
    found = torch.cat([one.classify(part) for part in pixels.split(COMPARED // 2)])
    assert torch.equal(found, answers(model, pixels, classes))
    assert (counting.exact, counting.quick) == (COMPARED, COMPARED)


class Sure:
    """A model whose features are those of one class each, without any doubt."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def image_features(self, pixels: Tensor, prefix: Prefix | None = None) -> Tensor:
        self.seen.append(len(pixels))
        return torch.eye(len(CLASSES))[pixels[:, 0, 0, 0].long()]


def test_images_without_a_doubt_are_seen_once() -> None:
    right = torch.arange(40) % len(CLASSES)
    model = Sure()
    one = Bf16Classifier(model, torch.eye(len(CLASSES)))  # type: ignore[arg-type]
    assert torch.equal(one.classify(right[:, None, None, None].expand(-1, 3, 2, 2).float()), right)
    assert model.seen == [COMPARED, COMPARED, 40 - COMPARED]  # without a piece of no images
