"""The icons with captions: what is written, and how their answers are kept."""

from pathlib import Path

import numpy as np
import torch

from benchmarks.shifts.evaluation import by_drawing, packed, unpacked
from benchmarks.shifts.icons.drawings import Icons, captions_of
from benchmarks.shifts.icons.shift import _write
from clipmerge.images.dataset import open_images
from clipmerge.images.image_set import CaptionedImages


def some_icons() -> Icons:
    names = ("trash", "arrow left", "cloud")
    cover = torch.zeros(3, 1, 64, 64, dtype=torch.uint8)
    for number in range(3):
        cover[number, 0, 10 : 30 + 8 * number, 10:40] = 255
    captions = tuple(captions_of(name, ["first tag", "second tag"]) for name in names)
    return Icons(names, captions, cover)


def test_pictures_have_their_captions_and_the_numbers_of_their_icons(tmp_path: Path) -> None:
    icons = some_icons()
    _write(tmp_path / "test", icons, {"trash": 7, "arrow left": 2, "cloud": 11}, 0)
    found = open_images(str(tmp_path / "test"))
    assert isinstance(found, CaptionedImages)
    assert found.captions == (
        ("arrow left, first tag, second tag",),
        ("trash, first tag, second tag",),
        ("cloud, first tag, second tag",),
    )
    assert found.image(0).size == (32, 32)
    assert len({found.image(at).tobytes() for at in range(3)}) == 3


def test_answers_both_ways_are_kept_by_icon(tmp_path: Path) -> None:
    _write(tmp_path / "test", some_icons(), {"trash": 7, "arrow left": 2, "cloud": 11}, 0)
    by_image = np.array([[0.0, 0.5, 1.0], [1.0, 1.0, 0.5]])
    answers = by_drawing(by_image, tmp_path / "test")
    assert answers.things == [2, 7, 11]
    kept = unpacked(packed(answers))
    assert kept.shape == (2, 3, 2)
    assert (kept.mean(axis=2) == by_image).all()


def test_icons_are_chosen_by_name_with_their_captions() -> None:
    icons = some_icons().named(frozenset({"cloud", "trash"}))
    assert icons.names == ("trash", "cloud")
    assert icons.cover.shape == (2, 1, 64, 64)
    assert [texts[1] for texts in icons.captions] == ["trash", "cloud"]
