"""Labelled images: found, named and sampled; and the command line's message for every fault."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipmerge.errors import DataError, UsageError
from clipmerge.images.class_names import read_class_names
from clipmerge.images.dataset import load_images
from clipmerge.images.prompts import check_templates, class_prompts
from clipmerge.images.sampling import balanced_sample
from tests.support.command import clipmerge, refused
from tests.support.image_files import png, save_plain_parquet

Folders = tuple[Path, Path]
FOLDERS = ["n01", "n02", "n03"]


def merge_refused(pair: Folders, message: str, *flags: object) -> None:
    parent = pair[1].parent
    before = sorted(parent.rglob("*"))
    line = refused(clipmerge("merge", *pair, "--recipe", "straggler-outlier", "--output", parent / "out", *flags))
    assert re.search(message, line), line
    assert sorted(parent.rglob("*")) == before


def test_a_folder_gives_its_images_in_order(images: Path) -> None:
    found = load_images(str(images))
    assert found.class_names == ("bird", "cat", "dog")
    assert Counter(found.labels) == {0: 10, 1: 10, 2: 10}
    for index in (0, 15, 29):
        path = Path(found.store.paths[index])
        assert path.parent.name == found.class_names[found.labels[index]]
        assert found.image(index).tobytes() == Image.open(path).convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new(mode, (4, 4)).save(tmp_path / name / ("1.tif" if mode == "CMYK" else "1.PNG"))
    image = load_images(str(tmp_path)).image(0)
    assert (image.mode, image.size) == ("RGB", (4, 4))


def test_underscores_are_spaces_and_files_between_folders_do_not_matter(tmp_path: Path) -> None:
    for name in ("black_cat", "dog", ".cache"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / name / "1.png")
        (tmp_path / name / "notes.txt").write_text("x")
        (tmp_path / name / "._1.png").write_bytes(b"x")
    (tmp_path / "readme.txt").write_text("x")
    found = load_images(str(tmp_path))
    assert found.class_names == ("black cat", "dog")
    assert len(found) == 2


def test_files_that_are_left_out_are_counted(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4), (200, 30, 30))
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for ending in ("jfif", "avif", "ppm", "png"):
            picture.save(tmp_path / name / f"1.{ending}", "JPEG" if ending == "jfif" else None)
    found = load_images(str(tmp_path))
    assert (len(found), found.notes) == (8, ())
    assert all(np.abs(np.asarray(found.image(at), int) - (200, 30, 30)).max() < 12 for at in range(8))
    (tmp_path / "cat" / "more" / "deep").mkdir(parents=True)
    for file in ("cat/1.heic", "cat/2.heic", "dog/labels.txt", "cat/more/2.png", "cat/more/deep/3.png", "readme.txt"):
        (tmp_path / file).write_bytes(b"x")
    assert load_images(str(tmp_path)).notes == (
        f"{tmp_path}: left out 3 files that are not images (2 .heic, 1 .txt) and 2 images in folders inside class "
        "folders",
    )


def test_a_split_of_a_folder_is_read(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (2, 2)).save(tmp_path / split / name / f"{number}.png")
    assert len(load_images(f"{tmp_path}:val")) == 4
    assert len(load_images(str(tmp_path / "train"))) == 6
    with pytest.raises(DataError, match=rf"{tmp_path}:test: .* has no folder 'test' and no files of a split of that"):
        load_images(f"{tmp_path}:test")


def test_wordnet_ids_are_said_to_need_names(tmp_path: Path) -> None:
    for name in ("n01440764", "n01443537"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / name / "1.png")
    assert "WordNet ids" in load_images(str(tmp_path)).notes[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.txt", "red\n\n green \nblue\n"),
        ("x.txt", "n03\tblue\nn01\tred\nn02\tgreen\n"),
        ("x.json", '["red", "green", "blue"]'),
        ("x.json", '{"n02": "green", "n01": "red", "n03": "blue", "n04": "black"}'),
    ],
)
def test_class_names_in_every_form(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_class_names(tmp_path / name, FOLDERS) == ("red", "green", "blue")
    (tmp_path / name).write_text(text, encoding="utf-8-sig")  # as editors on Windows save it
    assert read_class_names(tmp_path / name, FOLDERS) == ("red", "green", "blue")


def test_prompts_are_class_by_class() -> None:
    assert class_prompts(("a", "b"), ("x {}", "{} {}")) == ["x a", "a a", "x b", "b b"]
    assert check_templates([]) == ()
    with pytest.raises(UsageError, match=r"--template 'x': has no \{\}"):
        check_templates(["x {}", "x"])
    with pytest.raises(UsageError, match="is not UTF-8"):
        check_templates(["x {} \udcff"])


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60).map(tuple),
    count=st.integers(1, 80),
    seed=st.integers(0, 2**63),
)
def test_the_sample_is_balanced_seeded_and_without_repetition(labels: tuple[int, ...], count: int, seed: int) -> None:
    picked = balanced_sample(labels, count, seed)
    assert picked == balanced_sample(labels, count, seed)
    assert len(picked) == len(set(picked)) == min(count, len(labels))
    taken, there = Counter(labels[i] for i in picked), Counter(labels)
    most = max(taken.values())
    assert all(taken[label] >= min(there[label], most - 1) for label in there)


@pytest.fixture
def photos(images: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(images, tmp_path / "photos"))


def _empty_class(photos: Path, *files: str) -> None:
    (photos / "empty").mkdir()
    for file in files:
        (photos / "empty" / file).write_bytes(b"x")


def _keep_one_class(photos: Path) -> None:
    shutil.rmtree(photos / "cat")
    shutil.rmtree(photos / "dog")


def _first(content: bytes, name: str = "0.png") -> Callable[[Path], None]:
    def apply(photos: Path) -> None:
        (photos / "cat" / "0.png").unlink()
        (photos / "cat" / name).write_bytes(content)

    return apply


UNREADABLE = r"cannot be read as an image \(.*\); repair or remove it"
# what is done to a good folder, which path is given below it, and what is said
IMAGES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "empty class": (_empty_class, ".", "empty: this class folder holds no images; add some or remove the folder"),
    "hidden files only": (lambda f: _empty_class(f, "._1.png"), ".", "empty: this class folder holds no images"),
    "truncated": (lambda f: _first((f / "cat/0.png").read_bytes()[:200])(f), ".", rf"0\.png: {UNREADABLE}"),
    "text": (_first(b"not an image", "0.jpg"), ".", rf"0\.jpg: {UNREADABLE}"),
    "nothing": (_first(b""), ".", rf"0\.png: {UNREADABLE}"),
    "bomb": (lambda f: Image.new("1", (20_000, 20_000)).save(f / "cat/0.png"), ".", rf"0\.png: {UNREADABLE}"),
    "too high": (lambda f: None, "..", r"photos: holds folders \(bird, cat, dog\), not images; give the folder right"),
    "too low": (lambda f: None, "cat", "cat: has no subfolders; expected one per class"),
    "not there": (lambda f: None, "nothing", "nothing: no such folder; --data takes a folder"),
    "one class": (_keep_one_class, ".", "has one class; measuring needs at least two"),
}


@pytest.mark.parametrize("how", IMAGES)
def test_images_that_cannot_be_used_are_one_line(pair: Folders, photos: Path, how: str) -> None:
    damage, below, message = IMAGES[how]
    damage(photos)
    merge_refused(pair, message, "--data", (photos / below).resolve())


def test_a_folder_of_one_class_measures_nothing_but_is_found(photos: Path) -> None:
    _keep_one_class(photos)
    assert len(load_images(str(photos))) == 10
    with pytest.raises(DataError, match=r"photos: has one class; measuring needs at least two"):
        load_images(str(photos), whole=True)


def test_one_class_among_several_named_ones_is_measured(tmp_path: Path) -> None:
    source = save_plain_parquet(tmp_path / "x.parquet", {"image": [png(0), png(1)], "label": [0, 0]})
    (tmp_path / "names.txt").write_text("bird\ncat\n")
    assert load_images(str(source), tmp_path / "names.txt", whole=True).class_names == ("bird", "cat")


def test_a_name_that_two_classes_have_is_noted(photos: Path, tmp_path: Path) -> None:
    (photos / "cat").rename(photos / "a_b")
    (photos / "dog").rename(photos / "a b")
    assert load_images(str(photos)).notes == (
        f"{photos}: gives several classes the same name 'a b'; a model always predicts the first of them",
    )
    (tmp_path / "same.txt").write_text("crane\ncrane\nbird\n")
    (note,) = load_images(str(photos), tmp_path / "same.txt").notes
    assert note.startswith(f"{tmp_path / 'same.txt'}: gives several classes the same name 'crane'")
    (tmp_path / "names.json").write_text('{"a b": "cat", "a_b": "dog", "bird": "bird"}')
    named = load_images(str(photos), tmp_path / "names.json")
    assert (named.class_names, named.notes) == (("cat", "dog", "bird"), ())


def test_a_folder_whose_name_is_not_utf8(pair: Folders, photos: Path) -> None:
    (photos / "cat").rename(os.fsdecode(os.fsencode(photos) + b"/bad\xff"))
    message = r"class 'bad\\+udcff' has a name that is not UTF-8; rename it, or pass names with --classes"
    merge_refused(pair, message, "--data", photos)
    assert re.search(message, refused(clipmerge("evaluate", pair[0], "--data", photos)))


@pytest.mark.parametrize("source", ["", " "])
def test_an_empty_source_is_not_the_working_directory(source: str) -> None:
    with pytest.raises(DataError, match="names no images; give a folder"):
        load_images(source)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("names.txt", "bird\ncat\n", "has 2 class names, there are 3 classes; give one name per class"),
        ("names.json", '{"bird": "a bird"}', "has no name for 2 classes: cat, dog"),
        ("names.json", "{", "cannot be read as class names"),
        ("names.json", "3", "has 0 class names"),
        ("names.txt", "\xff\xfe", "cannot be read as class names"),
        ("none.txt", None, "cannot be read as class names"),
        ("names.json", '["a", null, "b"]', r"names\.json: null is not a class name; write a text for each class"),
        ("names.json", '["a", [2], "b"]', r"\[2\] is not a class name"),
        ("names.json", '{"bird": "a", "cat": 7, "dog": {}}', "7 is not a class name"),
        ("names.json", '["a", " ", "b"]', '" " is not a class name'),
        ("names.json", r'["a", "\ud800", "b"]', "a string with half of a surrogate pair"),
    ],
)
def test_class_names_that_do_not_fit_are_one_line(
    pair: Folders, images: Path, tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="latin-1")
    flags = ("--data", images, "--classes", tmp_path / name)
    merge_refused(pair, message, *flags)
