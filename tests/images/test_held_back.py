"""Images held back: their number and classes, and that the decision never sees them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipmerge.images.dataset import load_images
from clipmerge.images.image_set import LabelledImages
from clipmerge.images.split import (
    copies_note,
    held_back_groups,
    held_back_positions,
    sample_and_hold_back,
    without_copies,
)
from clipmerge.images.store import ImageList, Pixels
from clipmerge.report.text import text_of
from tests.support.command import anywhere, done
from tests.support.tiny_clip import Folders, save_images


def labelled(labels: tuple[int, ...]) -> LabelledImages:
    names = tuple(f"class {label}" for label in range(max(labels) + 1))
    store = ImageList(
        tuple(str(at).encode() for at in range(len(labels))), tuple(map(str, range(len(labels))))
    )
    return LabelledImages("here", store, labels, names)


def names(images: LabelledImages | None) -> list[str]:
    return [images.store.name(at) for at in range(len(images))] if images else []


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=80).map(tuple),
    st.integers(1, 100),
    st.integers(0, 5),
)
def test_no_image_is_in_both_and_none_is_there_twice(
    labels: tuple[int, ...], count: int, seed: int
) -> None:
    samples = sample_and_hold_back(labelled(labels), count, seed)
    assert samples == sample_and_hold_back(labelled(labels), count, seed)
    used = names(samples.decide) + names(samples.held_back)
    assert len(used) == len(set(used))
    assert 1 <= len(samples.decide) <= count
    assert samples.copies == 0
    assert samples.decide.class_names == labelled(labels).class_names
    for part in (samples.decide, samples.held_back):
        for name, label in zip(names(part), part.labels, strict=True) if part else ():
            assert labels[int(name)] == label


@pytest.mark.parametrize(
    ("available", "wanted", "decided_on", "held_back"),
    [
        (5000, 1024, 1024, 256),  # enough: the decision gets all it asked for
        (1024, 1024, 819, 205),  # not enough: a fifth comes out of what there is
        (15, 1024, 12, 3),
        (5000, 3000, 3000, 256),  # never more than 256
        (2, 1024, 2, 0),  # too few to hold any back
    ],
)
def test_the_share(available: int, wanted: int, decided_on: int, held_back: int) -> None:
    samples = sample_and_hold_back(
        labelled(tuple(at % 4 for at in range(available))), wanted, seed=0
    )
    assert (len(samples.decide), len(names(samples.held_back))) == (decided_on, held_back)


@given(st.lists(st.integers(5, 40), min_size=2, max_size=6), st.integers(0, 3))
def test_every_class_gives_its_share(sizes: list[int], seed: int) -> None:
    labels = tuple(label for label, size in enumerate(sizes) for _ in range(size))
    count = int(len(labels) * 0.2 + 0.5)
    taken = Counter(labels[at] for at in held_back_positions(labels, count, seed))
    for label, size in enumerate(sizes):
        assert abs(taken[label] - 0.2 * size) <= 1


def test_a_class_keeps_its_only_image_for_the_decision_and_the_seed_draws() -> None:
    labels = (0,) * 8 + (1,) + (2,) * 8
    assert Counter(labels[at] for at in held_back_positions(labels, 4, seed=0)) == {0: 2, 2: 2}
    labels = tuple(at % 4 for at in range(80))
    assert sorted(held_back_positions(labels, 16, 0)) != sorted(held_back_positions(labels, 16, 1))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60).map(tuple), st.integers(0, 5))
def test_images_with_one_caption_are_on_one_side(labels: tuple[int, ...], seed: int) -> None:
    count = len(labels) // 5
    back = held_back_groups(labels, count, seed)
    assert back == held_back_groups(labels, count, seed)
    assert len(back) <= count
    seen = {label for at, label in enumerate(labels) if at not in back}
    assert not seen & {labels[at] for at in back}


def test_an_image_that_is_there_twice_is_not_both_seen_and_held_back(tmp_path: Path) -> None:
    """80 images saved twice, once as a link, some in another class; unrelated files of the same
    size are no copies."""
    folder = save_images(tmp_path / "images", each=40)
    for number, path in enumerate(sorted(folder.glob("*/*.png"))[:80]):
        copy = (
            path.with_name(f"again-{path.name}")
            if number % 3
            else folder / "dog" / f"other-{number}.png"
        )
        if number % 5:
            copy.write_bytes(path.read_bytes())
        else:
            copy.symlink_to(path)
    samples = sample_and_hold_back(load_images(str(folder)), 1024, seed=0)
    assert samples.copies == 80
    parts = (samples.decide, samples.held_back)
    contents = [Path(path).read_bytes() for part in parts if part for path in part.store.paths]
    assert (len(contents), len(set(contents))) == (120, 120)
    assert len(names(samples.held_back)) == 24


def test_copies_are_reported_and_counted(pair: Folders, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "images", each=4)
    for number, path in enumerate(sorted(folder.glob("*/0.png"))):
        path.with_name(f"again-{number}.png").write_bytes(path.read_bytes())
    flags = (
        "-r",
        "straggler-outlier",
        "--data",
        folder,
        "--set",
        "measure.nodes=2",
        *anywhere(),
        "--json",
    )
    ended = done("merge", *pair, *flags)
    assert f"{folder}: 3 sampled images are" in ended.err
    assert "of others and left out, so that none is both seen and held back" in ended.err
    assert [ended.json["calibration"][name] for name in ("duplicates", "classes_with_images")] == [
        3,
        3,
    ]
    assert text_of(copies_note("x", 1)).startswith("x: 1 sampled image is a copy of others")


def test_copies_are_found_where_there_are_no_files() -> None:
    contents = [0, 1, 2, 3, 4, 0, 1, 1]
    store = ImageList(tuple(str(at).encode() for at in contents), tuple(map(str, contents)))
    images = LabelledImages("here", store, (0,) * 4 + (1,) * 4, ("a", "b"))
    assert names(without_copies(images)) == ["0", "1", "2", "3", "4"]
    pixels = [torch.full((3, 2, 2), float(value)) for value in contents]
    ready = LabelledImages(
        "here", Pixels(pixels.__getitem__, tuple(range(8)), "x"), images.labels, ("a", "b")
    )
    assert without_copies(ready).labels == (0, 0, 0, 0, 1)


@pytest.mark.parametrize(("count", "seen", "held"), [(64, 64, 16), (1024, 1000, 256)])
def test_the_seed_draws_the_classes_where_there_are_more_than_images(
    count: int, seen: int, held: int
) -> None:
    labels = tuple(label for label in range(1000) for _ in range(50))
    drawn = [sample_and_hold_back(labelled(labels), count, seed) for seed in range(3)]
    for samples in drawn:
        assert samples.held_back is not None
        assert len(set(samples.decide.labels) | set(samples.held_back.labels)) >= seen
        assert len(set(samples.held_back.labels)) == held
        # the classes are anywhere: the mean of 16 or more of them is far from that of the first
        # ones
        assert abs(np.mean(samples.held_back.labels) - 499.5) < 4 * 289 / np.sqrt(held)
    assert (
        len({tuple(sorted(samples.held_back.labels)) for samples in drawn if samples.held_back})
        == 3
    )
