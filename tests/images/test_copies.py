"""Copies are found however they were saved, and pictures that are merely alike are no copies."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipmerge.errors import DataError
from clipmerge.images.copies import (
    Prints,
    first_copies,
    overlap_notes,
    shared_notes,
    without_shared,
)
from clipmerge.images.image_set import LabelledImages
from tests.support.image_files import load_images, png, save_plain_parquet, save_tar


def photo(number: int, side: int = 96) -> Image.Image:
    """Smooth colours with an edge, as in photographs."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


COPIES = {
    "the same": lambda image: image.copy(),
    "JPEG": lambda image: as_jpeg(image, 50),
    "JPEG of a JPEG": lambda image: as_jpeg(as_jpeg(image, 90), 60),
    "three quarters": lambda image: image.resize((72, 72), Image.Resampling.BICUBIC),
    "twice": lambda image: image.resize((192, 192), Image.Resampling.LANCZOS),
    "noise": lambda image: Image.fromarray(
        (np.asarray(image).astype(int) + np.random.default_rng(0).integers(-3, 4, (96, 96, 3)))
        .clip(0, 255)
        .astype(np.uint8)
    ),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_picture_saved_anew_is_a_copy(how: str) -> None:
    pairs = [(picture, "a") for at in range(20) for picture in (photo(at), COPIES[how](photo(at)))]
    assert first_copies(Prints.read(load_images(pairs))) == list(range(0, 40, 2))


def test_digits_and_blank_pictures_are_no_copies_of_others() -> None:
    digits = load_images("digits")
    assert len(first_copies(Prints.read(digits))) == len(digits)
    dark = [Image.new("RGB", (32, 32), (value,) * 3) for value in (0, 1, 2, 0)]
    dot = Image.new("RGB", (512, 512))
    dot.putpixel((100, 100), (255, 255, 255))
    pairs = [(image, "a") for image in (*dark, dot)]
    assert first_copies(Prints.read(load_images(pairs))) == [0, 1, 2, 4]


def test_many_pictures_are_compared_in_blocks() -> None:
    pairs = [(Image.open(io.BytesIO(png(at % 700))), "a") for at in range(1400)]
    assert first_copies(Prints.read(load_images(pairs))) == list(range(700))


def test_preprocessed_pictures_are_compared_with_one_another() -> None:
    ready = [(torch.randn(3, 8, 8, generator=torch.manual_seed(at % 4)), 0) for at in range(6)]
    prints = Prints.read(load_images(ready, ["a"]))
    assert first_copies(prints) == [0, 1, 2, 3]
    assert shared_notes({"a": prints}, {"b": Prints.read(load_images("digits"))}) == ()


def test_sources_of_all_kinds_are_compared(tmp_path: Path) -> None:
    columns = {"image": [png(at) for at in range(3)], "label": ["a", "b", "c"]}
    table = load_images(str(save_plain_parquet(tmp_path / "x.parquet", columns)))
    members = {"a.png": png(1), "a.cls": b"a", "b.png": png(9), "b.cls": b"b"}
    tar = load_images(str(save_tar(tmp_path / "x.tar", members)))
    (note,) = shared_notes({"tar": Prints.read(tar)}, {"table": Prints.read(table)})
    same = f"{tmp_path}/x.tar, a.png shows what {tmp_path}/x.parquet, row 1 shows"
    assert note.startswith(f"tar: 1 image is also in table ({same})")


def images_of(numbers: range) -> LabelledImages:
    return load_images([(photo(at), "ab"[at % 2]) for at in numbers])


def test_images_of_a_sweep_that_are_used_twice_are_noted() -> None:
    data, target = images_of(range(10)), images_of(range(8, 20))
    twice = load_images([(photo(at), "ab"[at % 2]) for at in (19, 30, 30)])
    notes = overlap_notes(data, {"y": target}, {"z": twice})
    assert [note[:30] for note in notes] == [
        "`ood` z: 1 image is a copy of ",
        "`id` y: 2 images are also in `",
        "`ood` z: 1 image is also in `i",
    ]
    assert overlap_notes(None, {"y": target}, {}) == ()


def test_images_that_data_has_too_are_left_out_with_one_note() -> None:
    shift = images_of(range(8, 20))
    parts = [Prints.read(images_of(numbers)) for numbers in (range(9), range(9, 12))]
    others, (note,) = without_shared(shift, parts, "`ood` x", "`data` y")
    assert len(others) == 8
    assert note.startswith("`ood` x: 4 images are also in `data` y (")
    assert note.endswith("and left out")
    with pytest.raises(DataError, match="all images are also in `data` y; give others"):
        without_shared(images_of(range(3)), parts, "`ood` x", "`data` y")
