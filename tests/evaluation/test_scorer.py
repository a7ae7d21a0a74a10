"""What a scorer computes once, however many points, sources and loads of images there are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clipmerge.checkpoint import open_checkpoint
from clipmerge.evaluation.accuracy import load_model
from clipmerge.evaluation.corruptions import corrupted_sets
from clipmerge.evaluation.scorer import Scorer
from clipmerge.evaluation.verdict import moves_to_models
from clipmerge.images.dataset import open_images
from clipmerge.learning import interpolate
from clipmerge.models.building import build_model
from clipmerge.options import ImageOptions
from clipmerge.progress import Progress
from tests.support.tasks import inputs_of, plan_of
from tests.support.tiny_clip import Folders

Spy = Callable[[object, str], Mock]


def keep_text_tower(folders: Folders) -> None:
    """Make the text tower of the fine-tuned model that of the zero-shot one."""
    zeroshot, finetuned = (load_file(folder / "model.safetensors") for folder in folders)
    kept = {name: value for name, value in zeroshot.items() if name.startswith("text")}
    save_file(finetuned | kept, folders[1] / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(("text_moves", "embedded"), [(True, 3), (False, 1)])
@pytest.mark.parametrize("captioned", [False, True])
def test_texts_are_embedded_once_for_each_text_tower(
    copies: Folders,
    images: Path,
    spied: Spy,
    tmp_path: Path,
    captioned: bool,
    text_moves: bool,
    embedded: int,
) -> None:
    """Three points, six sources of the same texts, and a load for each batch."""
    if not text_moves:
        keep_text_tower(copies)
    source: Any = images
    if captioned:
        source = [(str(file), f"{file.parent.name} {file.stem}") for file in images.glob("*/*")]
    target = open_images(source)
    sources = {"": target, **corrupted_sets(target, 32)}
    inputs = inputs_of(copies)
    path = interpolate.WeightPath(build_model(inputs), inputs, torch.device("cpu"))
    moves = moves_to_models(path, plan_of(copies, "wise-ft"))
    calls = spied(path.model, "text_features")
    settings = ImageOptions(device="cpu", batch_size=8)
    scorer = Scorer(path.model, settings, path, load_bytes=1)
    found = scorer.score(moves, sources, Progress())
    assert (len(sources), calls.call_count) == (6, embedded)
    alone = Scorer(path.model, settings, path)
    (expected,) = alone.score(moves, {"": sources["corrupted 4"]}, Progress()).values()
    for mine, by_itself in zip(found["corrupted 4"], expected, strict=True):
        assert np.array_equal(mine.best, by_itself.best)
        assert np.array_equal(mine.correct, by_itself.correct)


def test_sources_of_the_same_classes_share_their_texts(
    pair: Folders, images: Path, spied: Spy
) -> None:
    target = open_images(str(images))
    model = load_model(open_checkpoint(str(pair[0])))
    calls = spied(model, "text_features")
    scorer = Scorer(model, ImageOptions())
    scorer.score([lambda _: None], {"a": target, "b": target}, Progress())
    assert calls.call_count == 1
