"""Images held back: their number and classes, and that the decision never sees them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmerge.images.dataset import LabelledImages, load_images
from clipmerge.images.folder import FolderStore
from clipmerge.images.held_back import held_back_positions, sample_and_hold_back
from tests.support.tiny_clip import save_images


def labelled(labels: tuple[int, ...]) -> LabelledImages:
    names = tuple(f"class {label}" for label in range(max(labels) + 1))
    return LabelledImages("here", FolderStore(tuple(f"{at}.png" for at in range(len(labels)))), labels, names)


LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=80).map(tuple)


@given(LABELS, st.integers(1, 100), st.integers(0, 5))
def test_no_image_is_in_both_and_none_is_there_twice(labels: tuple[int, ...], count: int, seed: int) -> None:
    decide, held = sample_and_hold_back(labelled(labels), count, seed)
    paths = [*decide.store.paths, *(held.store.paths if held else ())]
    assert len(paths) == len(set(paths))
    assert 1 <= len(decide) <= count
    assert decide.class_names == labelled(labels).class_names
    for part in (decide, held):
        for path, label in zip(part.store.paths, part.labels, strict=True) if part else ():
            assert labels[int(path.removesuffix(".png"))] == label


@given(LABELS, st.integers(1, 100), st.integers(0, 5))
def test_the_same_seed_holds_back_the_same(labels: tuple[int, ...], count: int, seed: int) -> None:
    first, second = [sample_and_hold_back(labelled(labels), count, seed) for _ in range(2)]
    assert first == second


@pytest.mark.parametrize(
    ("available", "wanted", "decided_on", "held_back"),
    [
        (5000, 1024, 1024, 256),  # enough: the decision gets all it asked for
        (1024, 1024, 819, 205),  # not enough: a fifth comes out of what there is
        (1100, 1024, 880, 220),
        (15, 1024, 12, 3),
        (100_000, 50_000, 50_000, 256),  # never more than 256
        (2, 1024, 2, 0),  # too few to hold any back
    ],
)
def test_the_share(available: int, wanted: int, decided_on: int, held_back: int) -> None:
    decide, held = sample_and_hold_back(labelled(tuple(at % 4 for at in range(available))), wanted, seed=0)
    assert (len(decide), len(held) if held else 0) == (decided_on, held_back)


def test_no_share_leaves_the_sample_as_it_is() -> None:
    images = labelled(tuple(at % 3 for at in range(50)))
    decide, held = sample_and_hold_back(images, 30, 1, share=0.0)
    assert (decide, held) == (images.sample(30, 1), None)


@given(st.lists(st.integers(5, 40), min_size=2, max_size=6), st.integers(0, 3))
def test_every_class_gives_its_share(sizes: list[int], seed: int) -> None:
    labels = tuple(label for label, size in enumerate(sizes) for _ in range(size))
    count = int(len(labels) * 0.2 + 0.5)
    taken = Counter(labels[at] for at in held_back_positions(labels, count, seed))
    for label, size in enumerate(sizes):
        assert abs(taken[label] - 0.2 * size) <= 1


def test_a_class_keeps_its_only_image_for_the_decision() -> None:
    labels = (0,) * 8 + (1,) + (2,) * 8
    taken = [labels[at] for at in held_back_positions(labels, 4, seed=0)]
    assert Counter(taken) == {0: 2, 2: 2}


def test_another_seed_holds_back_other_images() -> None:
    labels = tuple(at % 4 for at in range(80))
    assert sorted(held_back_positions(labels, 16, 0)) != sorted(held_back_positions(labels, 16, 1))


def test_images_that_are_read_in_blocks_are_held_in_memory(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    decide, held = sample_and_hold_back(load_images("digits"), 40, seed=0)
    assert held is not None
    assert (len(decide), len(held)) == (40, 10)
    assert held.image(0).mode == "RGB"


def test_files_stay_files(tmp_path: Path) -> None:
    decide, held = sample_and_hold_back(load_images(str(save_images(tmp_path / "images"))), 1024, seed=0)
    assert held is not None
    assert (len(decide), Counter(held.labels)) == (24, {0: 2, 1: 2, 2: 2})
