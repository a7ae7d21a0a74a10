"""Answers that are found in bfloat16 are those of float32."""

import pytest
import torch
from torch import Tensor

from clipmerge.checkpoint import open_checkpoint
from clipmerge.evaluation.accuracy import load_model
from clipmerge.evaluation.bf16_classifier import COMPARED, Bf16Classifier
from clipmerge.models import ImageTextModel, precision
from clipmerge.models.memory import MicroBatcher
from clipmerge.models.zero_shot import class_embeddings
from tests.support.small_objective import save_ends

CLASSES = tuple(letter * 2 for letter in "abcdefghij")


class Counting:
    """A model, and how many images it embedded in either precision; bfloat16 may be made worse than
    it is."""

    def __init__(self, model: ImageTextModel, noise: float = 0.0) -> None:
        self.model, self.noise = model, noise
        self.exact = self.quick = 0

    def image_features(self, pixels: Tensor) -> Tensor:
        features = self.model.image_features(pixels)
        if not torch.is_autocast_enabled("cpu"):
            self.exact += len(pixels)
            return features
        self.quick += len(pixels)
        return features + self.noise * torch.randn(
            features.shape, generator=torch.Generator().manual_seed(self.quick)
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ImageTextModel:
    return load_model(open_checkpoint(str(save_ends(tmp_path_factory.mktemp("ends"))[0])))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda _device: True)


def pictures(count: int) -> Tensor:
    """One colour each: the mean of noise would look the same to the model in all of them."""
    colours = torch.randn(count, 3, 1, 1, generator=torch.Generator().manual_seed(5))
    return (3 * colours).expand(-1, -1, 32, 32)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("images", "noise", "quick", "exact"),
    [
        (300, 0.001, 300, range(COMPARED + 1, 200)),  # some are in doubt, and most are not
        (200, 1.0, 50, range(200, 300)),  # bfloat16 decides nothing and is given up
        (
            2 * COMPARED,
            0.001,
            0,
            range(2 * COMPARED, 2 * COMPARED + 1),
        ),  # of few images none is compared
    ],
)
def test_answers_are_float32s(
    model: ImageTextModel, images: int, noise: float, quick: int, exact: range
) -> None:
    counting, pixels = Counting(model, noise), pictures(images)
    classes = class_embeddings(model, CLASSES, ("a {}.",), "cpu")
    one = Bf16Classifier(counting, classes, MicroBatcher(64, str), images)  # type: ignore[arg-type]
    found = torch.cat(
        [one.classify(part) for part in pixels.split(max(COMPARED // 2, min(50, images // 3)))]
    )
    assert torch.equal(found, (model.image_features(pixels) @ classes.T).argmax(dim=1))
    assert counting.quick == quick
    assert counting.exact in exact
    only = class_embeddings(
        model, ("only",), ("a {}.",), "cpu"
    )  # a single class needs no second look
    assert Bf16Classifier(model, only, MicroBatcher(None, str), 99).classify(
        pictures(3)
    ).tolist() == [
        0,
        0,
        0,
    ]


class Sure:
    """A model whose features are those of one class each, without any doubt."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def image_features(self, pixels: Tensor) -> Tensor:
        self.seen.append(len(pixels))
        return torch.eye(len(CLASSES))[pixels[:, 0, 0, 0].long()]


def test_images_without_a_doubt_are_seen_once() -> None:
    right = torch.arange(40) % len(CLASSES)
    model = Sure()
    one = Bf16Classifier(model, torch.eye(len(CLASSES)), MicroBatcher(None, str), len(right))  # type: ignore[arg-type]
    assert torch.equal(one.classify(right[:, None, None, None].expand(-1, 3, 2, 2).float()), right)
    assert model.seen == [COMPARED, COMPARED, 40 - COMPARED]  # without a piece of no images
