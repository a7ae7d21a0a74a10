"""Checks of models, images and class names before a merge."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import clipmerge
from clipmerge import ClipmergeError, DataError
from clipmerge.checks import (
    check_answers,
    describe_odd_names,
    hold_same_weights,
)
from clipmerge.images.dataset import open_images
from clipmerge.types import CHECKS
from tests.support.raw_safetensors import edit
from tests.support.tasks import inputs_of
from tests.support.tiny_clip import (
    CLASSES,
    Folders,
    save_captions,
    save_classifiers,
    save_images,
    save_pair,
)
from tests.support.told import Told


@pytest.fixture(scope="module")
def places(pair: Folders, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments of merges that are doubted, by the check."""
    folder = tmp_path_factory.mktemp("doubted")
    other = save_pair(folder / "other", seed=5)[1]
    codes = save_images(folder / "codes", classes=("class a", "class b", "class c"))
    fish = ("cat", "bird", "fish")
    return {
        "unrelated": (pair[0], other, {}),
        "odd-names": (*pair, {"data": codes}),
        "class-order": (*save_classifiers(folder / "heads", CLASSES, CLASSES[::-1]), {}),
        "class-order of images": (*save_classifiers(folder / "head", fish, fish), {"data": images}),
    }


@pytest.mark.parametrize(
    "case",
    ["unrelated", "odd-names", "class-order", "class-order of images"],
)
def test_a_doubt_is_an_error_unless_it_is_allowed(
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


def test_models_that_differ_in_one_entry_are_not_equal(pair: Folders, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pair[1], tmp_path / "copy"))
    assert hold_same_weights(inputs_of((pair[1], copy)), 0)
    name = "text_model.embeddings.token_embedding.weight"
    last = load_file(pair[1] / "model.safetensors")[name]
    last[-1, -1] += 1  # beyond the sample of a larger matrix
    edit(copy, **{name: last})
    assert not hold_same_weights(inputs_of((pair[1], copy)), 0)


def test_a_classifier_is_given_no_captions(tmp_path: Path) -> None:
    zeroshot, finetuned = save_classifiers(tmp_path / "heads", CLASSES, CLASSES)
    captions = save_captions(tmp_path / "captions")
    output = tmp_path / "out"
    for refused in (
        lambda: clipmerge.merge(zeroshot, finetuned, data=captions, output=output),
        lambda: clipmerge.evaluate(finetuned, data={"mine": captions}),
    ):
        with pytest.raises(DataError, match=r"captions: has captions, which .* cannot read"):
            refused()
    assert not output.exists()


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
        ("far", 0.6, 0.9, None),  # fine-tuning forgot it
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
    # two images are no evidence
    assert not [*check_answers(name, source, right(finetuned, 2), right(zeroshot, 2))]


@pytest.mark.parametrize(
    ("names", "look"),
    [
        (("n01440764", "n01443537"), "are WordNet's codes"),
        (("001.cat", "002.dog"), "begin with numbers"),
        (("cat", "car"), ""),
        (("house cat", "house dog"), ""),
    ],
)
def test_labels_that_are_no_class_names(names: tuple[str, ...], look: str) -> None:
    assert describe_odd_names(names) == look
