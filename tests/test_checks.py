"""Doubts about the inputs: errors that `allow` waves through."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import clipmerge
from clipmerge import ClipmergeError
from clipmerge.checks import (
    UNRELATED,
    are_equal,
    check_answers,
    cosines_of,
    describe_odd_names,
)
from clipmerge.images.dataset import open_images
from clipmerge.types import CHECKS
from tests.support.raw_safetensors import edit
from tests.support.tasks import inputs_of
from tests.support.tiny_clip import CLASSES, Folders, save_classifiers, save_images, save_pair
from tests.support.told import Told


def blank(folder: Path, value: int, *, same: bool = True) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((40, 36, 3), value, np.uint8)
            pixels = pixels if same else rng.integers(0, 8, (40, 36, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def places(pair: Folders, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments of merges that are doubted, by the check."""
    folder = tmp_path_factory.mktemp("doubted")
    other = save_pair(folder / "other", seed=5)[1]
    rng = np.random.default_rng(0)
    striped = folder / "striped"
    picture = rng.integers(0, 255, (40, 36, 3)).astype(np.uint8)
    for name in ("cat", "dog"):
        (striped / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(picture).save(striped / name / f"{number}.png")
    codes = save_images(folder / "codes", classes=("class a", "class b", "class c"))
    shutil.copytree(pair[0], folder / "copy")
    return {
        "unrelated": (pair[0], other, {}),
        "equal-models": (pair[0], folder / "copy", {}),
        "blank-images": (*pair, {"data": blank(folder / "blank", 0, same=False)}),
        "same-images": (*pair, {"data": striped}),
        "odd-names": (*pair, {"data": codes}),
        "class-order": (*save_classifiers(folder / "heads", CLASSES, CLASSES[::-1]), {}),
        "class-order of images": (
            *save_classifiers(folder / "head", ("cat", "bird", "fish"), ("cat", "bird", "fish")),
            {"data": images},
        ),
    }


@pytest.mark.parametrize(
    "case",
    [
        *("unrelated", "equal-models", "blank-images", "same-images", "odd-names"),
        *("class-order", "class-order of images"),
    ],
)
def test_what_is_doubted_is_an_error_that_allow_waves_through(
    places: dict[str, Any], tmp_path: Path, case: str
) -> None:
    zeroshot, finetuned, options = places[case]
    check, *_ = case.split()
    given = {"recipe": "wise-ft", "output": tmp_path / "out", **options}
    told = Told()
    with pytest.raises(ClipmergeError, match=rf"nothing was written \(`allow={check}` goes on"):
        clipmerge.merge(zeroshot, finetuned, progress=told, **given)
    assert not list(tmp_path.iterdir())
    clipmerge.merge(zeroshot, finetuned, progress=told, allow=CHECKS, **given)
    record = (tmp_path / "out" / "clipmerge.json").read_text()
    said = [line.rpartition("/")[2] for line in told.lines]  # the record names no folders
    assert any(text in record for text in said)
    assert str(tmp_path.parent) not in record


def test_cosines_and_samples_tell_related_models_from_others(pair: Folders, tmp_path: Path) -> None:
    other = save_pair(tmp_path, seed=5)[1]
    assert min(cosines_of(inputs_of(pair)).values()) > 0.3
    unrelated = inputs_of((pair[0], other))
    assert max(cosines_of(unrelated).values()) < UNRELATED
    matrix = "vision_model.encoder.layers.0.mlp.fc1.weight"
    keys = {matrix: matrix}
    only = replace(unrelated, zeroshot_keys=keys, finetuned_keys=(keys,))
    a, b = only.theta_0(matrix).flatten(), only.theta_1(matrix).flatten()
    expected = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
    assert cosines_of(only) == {"vision": pytest.approx(expected, abs=1e-6)}
    copy = Path(shutil.copytree(pair[1], tmp_path / "copy"))
    assert are_equal(inputs_of((pair[1], copy)), 0)
    name = "text_model.embeddings.token_embedding.weight"
    last = load_file(pair[1] / "model.safetensors")[name]
    last[-1, -1] += 1  # beyond the sample of a larger matrix
    edit(copy, **{name.replace(".", "__"): last})
    assert not are_equal(inputs_of((pair[1], copy)), 0)


def right(share: float, count: int = 100) -> Any:
    return np.arange(count) < share * count


@pytest.mark.parametrize(
    ("name", "finetuned", "zeroshot", "check"),
    [
        ("", 0.9, 0.6, None),
        ("", 0.34, 0.33, "at-chance"),
        ("", 0.9, 0.34, None),
        ("", 0.5, 0.34, None),
        ("", 0.6, 0.9, "swapped"),
        ("far", 0.6, 0.9, None),  # what fine-tuning forgot
        ("far", 0.34, 0.9, None),
        ("far", 0.34, 0.33, "at-chance"),
    ],
)
def test_answers_tell_wrong_names_and_a_wrong_order(
    images: Path, name: str, finetuned: float, zeroshot: float, check: str | None
) -> None:
    source = open_images(str(images))
    found = [*check_answers(name, source, right(finetuned), right(zeroshot))]
    assert [doubt.check for doubt in found] == ([check] if check else [])
    # a handful of images tell nothing
    assert not [*check_answers(name, source, right(finetuned, 2), right(zeroshot, 2))]


@pytest.mark.parametrize(
    ("names", "look"),
    [
        (("0", "1"), "are numbers"),
        (("n01440764", "n01443537"), "are WordNet's codes"),
        (("001.cat", "002.dog"), "begin with numbers"),
        (("train", "val"), "are names of splits"),
        (("class a", "class b"), "differ in letters or numbers alone"),
        (("cat", "car"), ""),
        (("house cat", "house dog"), ""),
    ],
)
def test_names_that_look_like_none(names: tuple[str, ...], look: str) -> None:
    assert describe_odd_names(names) == look
