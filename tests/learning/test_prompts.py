"""Classes that the text tower cannot distinguish are refused wherever prompts are embedded."""

from pathlib import Path

import pytest
import torch

from clipmerge.checkpoint import open_checkpoint
from clipmerge.evaluation.accuracy import load_model
from clipmerge.images.prompts import class_prompts
from clipmerge.learning.zeroshot_loss import Prompts
from clipmerge.models import ImageTextModel, zero_shot
from clipmerge.models.zero_shot import class_embeddings
from tests.support.command import anywhere, clipmerge, refused
from tests.support.tiny_clip import Folders, save_images

LONG = "a photo of a very long line that never ends {}"  # 32 letters fill the tiny text tower


@pytest.fixture(scope="module")
def model(pair: Folders) -> ImageTextModel:
    return load_model(open_checkpoint(str(pair[0])))


def test_one_template_that_tells_classes_apart_is_enough(model: ImageTextModel) -> None:
    templates = (LONG, "a {}.")
    assert class_embeddings(model, ("bird", "cat"), templates, torch.device("cpu")).shape == (2, 16)
    assert (
        Prompts(model, class_prompts(("bird", "cat"), templates), 2, torch.device("cpu")).classes
        == 2
    )


@pytest.mark.parametrize("command", ["evaluate", "merge"])
def test_a_command_says_it_in_one_line(pair: Folders, tmp_path: Path, command: str) -> None:
    images = save_images(tmp_path / "images", each=2)
    merge = ("merge", *pair, "-r", "straggler-outlier", *anywhere())
    line = refused(
        clipmerge(
            *(merge if command == "merge" else ("evaluate", pair[0])),
            "--data",
            images,
            "--template",
            LONG,
        )
    )
    assert "are the same to the model" in line


@pytest.mark.parametrize("long", [0.0, 1e9])
def test_the_time_of_many_prompts_is_reported(
    model: ImageTextModel, monkeypatch: pytest.MonkeyPatch, long: float
) -> None:
    whole = class_embeddings(
        model, ("bird", "cat", "dog"), ("a {}.", "the {}"), torch.device("cpu")
    )
    monkeypatch.setattr(zero_shot, "PROMPTS_AT_ONCE", 2)
    monkeypatch.setattr(zero_shot, "_LONG", long)
    said: list[str] = []
    found = class_embeddings(
        model, ("bird", "cat", "dog"), ("a {}.", "the {}"), torch.device("cpu"), said.append
    )
    assert torch.allclose(found, whole, atol=1e-6)
    told = "embedding 6 prompts (3 classes in 2 templates): about "
    assert [line.startswith(told) for line in said] == ([] if long else [True])
