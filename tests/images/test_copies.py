"""Copies are found however they were saved, and pictures that are merely alike are no copies."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipmerge.errors import DataError
from clipmerge.images import copies
from clipmerge.images.copies import Thumbnails
from clipmerge.images.image_set import LabelledImages
from tests.support.image_files import load_images, saved


def kept(source: Any) -> list[int]:
    """The items that are no copies of an earlier one."""
    return list(Thumbnails.read(load_images(source)).without_copies().images.pictures.items)


def photo(number: int) -> Image.Image:
    """Smooth colours with an edge, as in photographs."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
    return coarse.resize((96, 96), Image.Resampling.BICUBIC)


COPIES = {
    "the same": lambda image: image.copy(),
    "JPEG": lambda image: Image.open(io.BytesIO(saved(image, "JPEG", quality=50))),
    "three quarters": lambda image: image.resize((72, 72), Image.Resampling.BICUBIC),
    "noise": lambda image: Image.fromarray(
        (np.asarray(image).astype(int) + np.random.default_rng(0).integers(-3, 4, (96, 96, 3)))
        .clip(0, 255)
        .astype(np.uint8)
    ),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_picture_saved_anew_is_a_copy(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "_AT_ONCE", 7)  # of 40
    pairs = [(picture, "a") for at in range(20) for picture in (photo(at), COPIES[how](photo(at)))]
    assert kept(pairs) == list(range(0, 40, 2))


def test_digits_and_blank_pictures_are_no_copies_of_others() -> None:
    assert kept("digits") == list(range(1797))
    dark = [Image.new("RGB", (32, 32), (value,) * 3) for value in (0, 1, 2, 0)]
    dot = Image.new("RGB", (512, 512))
    dot.putpixel((100, 100), (255, 255, 255))
    pairs = [(image, "a") for image in (*dark, dot)]
    assert kept(pairs) == [0, 1, 2, 3, 4]


def images_of(numbers: range) -> LabelledImages:
    return load_images([(photo(at), "ab"[at % 2]) for at in numbers])


def test_images_that_data_has_too_are_left_out_with_one_note() -> None:
    shift, data = (Thumbnails.read(images_of(numbers)) for numbers in (range(8, 20), range(12)))
    others, (note,) = shift.without_shared(data, "`ood` x", "`data` y")
    assert len(others.images) == 8
    assert note.startswith("`ood` x: 4 images are also in `data` y (")
    assert note.endswith("left out")
    with pytest.raises(DataError, match="all images are also in `data` y; give others"):
        Thumbnails.read(images_of(range(3))).without_shared(data, "`ood` x", "`data` y")
