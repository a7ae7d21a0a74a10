"""The split: its sizes and classes, and that nothing is on two sides."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipmerge.images.copies import Thumbnails
from clipmerge.images.image_set import (
    CaptionedImages,
    ImageSource,
    LabelledImages,
    Pictures,
)
from clipmerge.images.split import split_images, split_shift
from tests.support.image_files import load_images


def picture(number: int) -> Image.Image:
    """A picture unlike that of any other number."""
    noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3))
    return Image.fromarray(noise.astype(np.uint8))


def labelled(labels: tuple[int, ...]) -> LabelledImages:
    names = tuple(f"class {label}" for label in range(max(labels) + 1))
    return LabelledImages("here", Pictures(picture, str, range(len(labels))), labels, names)


def items(images: ImageSource | None) -> list[int]:
    return list(images.pictures.items) if images else []


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=80).map(tuple),
    st.integers(1, 100),
    st.integers(0, 5),
    st.booleans(),
)
def test_no_image_and_no_caption_is_on_two_sides(
    labels: tuple[int, ...], count: int, seed: int, captioned: bool
) -> None:
    images: ImageSource = labelled(labels)
    if captioned:
        captions = tuple((f"caption {label}",) for label in labels)
        images = CaptionedImages("here", images.pictures, labels, captions)
    split = split_images(images, count, seed)
    train, val, test = map(items, (split.train, split.val, split.test))
    assert len(set(train)) == len(train) >= 1 - captioned
    assert not set(train) & {*val, *test}
    assert captioned or not val or set(test) <= set(val)  # fewer than 256 judge and choose
    for part in (split.train, split.val, split.test):
        assert part is None or part.labels == tuple(labels[item] for item in items(part))
    if captioned:
        assert not {labels[at] for at in train} & {labels[at] for at in test}


@pytest.mark.parametrize(
    ("available", "wanted", "sizes"),
    [
        (2000, 1024, (819, 205, 256)),  # enough: those that judge are additional
        (1024, 1024, (655, 369, 256)),  # 205 judge and 164 choose: all do both, 256 at most judge
        (100, 1024, (64, 36, 36)),
        (7, 1024, (5, 2, 2)),
        (2, 1024, (1, 1, 0)),  # too few to judge by any
        (1, 1024, (1, 0, 0)),
    ],
)
def test_the_shares(available: int, wanted: int, sizes: tuple[int, int, int]) -> None:
    images = labelled(tuple(at % 4 for at in range(available)))
    split = split_images(images, wanted, seed=0)
    assert tuple(len(items(part)) for part in (split.train, split.val, split.test)) == sizes
    assert not items(split_images(images, wanted, seed=0, test=0).test)
    assert split_images(images, wanted, seed=0, val=0).val is None


def test_a_class_with_one_image_is_learned_from_and_judges_nothing() -> None:
    labels = (*range(10), 10, 10, 10, 11, 11, 11)
    split = split_images(labelled(labels), 1024, seed=0, val=0)
    assert split.test is not None
    assert set(split.test.labels) <= {10, 11}
    assert split.train is not None
    assert set(split.train.labels) == set(range(12))
    assert split_images(labelled(tuple(range(6))), 1024, seed=0).test is None


def test_half_of_each_class_of_a_shift_teaches_and_the_other_half_judges() -> None:
    labels = (0,) * 9 + (1,) * 2 + (2,) * 4
    images = Thumbnails.read(labelled(labels))
    split = split_shift(images, 0, teaches=True)
    teach, judge = items(split.train), items(split.test)
    assert sorted([*teach, *judge]) == list(range(15))
    assert Counter(labels[at] for at in teach) == {0: 4, 1: 1, 2: 2}
    assert items(split_shift(images, 0, teaches=False).test) == list(range(15))


def test_the_same_seed_chooses_what_it_always_chose() -> None:
    """Published results depend on it."""
    split = split_images(load_images("digits"), 64, seed=3)
    assert [len(items(part)) for part in (split.train, split.val, split.test)] == [51, 29, 29]
    assert items(split.train)[:5] == [253, 1151, 589, 926, 287]


def test_copies_are_on_one_side_and_count_once() -> None:
    """Each picture is there three times, with slightly different pixels."""

    def changed(item: int) -> Image.Image:
        noise = np.random.default_rng(item).integers(0, 2, (16, 16, 3)).astype(np.uint8)
        return Image.fromarray(np.asarray(picture(item // 3)) // 2 + noise)

    images = replace(labelled((0, 0, 0, 1, 1, 1) * 30), pictures=Pictures(changed, str, range(180)))
    split = split_images(images, 1024, seed=0)
    assert split.copies == 120
    used = [*items(split.train), *items(split.test)]
    assert len({item // 3 for item in used}) == len(used) == 60
    assert "120 of the 180 sampled images are copies of others" in split.notes[0]
