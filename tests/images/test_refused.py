"""Sources that cannot be used: one line that says what, where, and what next."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipmerge.errors import DataError, UsageError
from clipmerge.images.dataset import open_images
from clipmerge.images.image_set import Columns
from tests.support.image_files import load_images, png, save_plain_parquet, save_tar


def files(folder: Path, *names: str, content: bytes = png(0)) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def table(folder: Path, text: str) -> Path:
    files(folder, "0.png", "1.png")
    (folder / "x.csv").write_text(text)
    return folder / "x.csv"


def with_link(path: Path, target: str) -> Path:
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("a/1.png")
        info.type, info.linkname = tarfile.SYMTYPE, target
        archive.addfile(info)
    return path


def refuse(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        open_images(source)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("imagenetv3", r"Did you mean 'imagenetv2'\?"),
        (" ", "names no images; give a folder"),
        (
            [(png(0), [0, 0, 1]), (png(1), [1, 0, 0])],
            r"\[0, 0, 1\] is not a label; .* \(of one-hot labels the argmax\)",
        ),
        ([(png(0), float("nan"))], "nan is not a label; give a class"),
        (
            [(png(0), 1), (png(1), -100)],
            r"1 image has no label \(of 2\): .* or give a labelled split",
        ),
        ([png(0)], r"its items are not \(image, label\) or"),
        ({"a": 1}, r"dict holds no labelled images; give a path"),
    ],
)
def test_sources_that_are_no_files(source: Any, message: str) -> None:
    refuse(source, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "filepath,label\n0.png,a\n1.png,a,b\n",
            r"x\.csv: cannot be read \(row 3 has more or fewer fields than row 1\)",
        ),
        ("filepath,label\n", r"x\.csv: holds no images"),
        ("filepath,size\n0.png,3\n", r"no column 'label' .*; name one with `label_column` or"),
        ("filepath,label\n2.png,a\n", r"1 image has no file \(of 1\): row 1, 2\.png; add it to"),
        ("name,label\n0.png,a\n", r"no column 'image' \(columns: name, label\); name one with"),
        (
            "filepath,label\n0.png,a\n1.png,\n",
            r"x\.csv: 1 image has no label \(of 2\): .*1\.png; label them, leave them out",
        ),
        (
            'filepath,label\n0.png,"a\n1.png,b\n0.png,"a"\n',
            r"x\.csv: cannot be read \(line 4: a quote that opens a field is not closed; close it",
        ),
    ],
)
def test_tables(text: str, message: str, tmp_path: Path) -> None:
    refuse(table(tmp_path, text), message)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.png": png(0), "0.json": b"{"}, r"x\.tar, 0\.json: cannot be read as JSON"),
        ({"0.png": png(0), "0.json": b"7"}, r"1 image has no label \(of 1\): .*x\.tar, 0\.png"),
        ({"0.png": png(0), "0.cls": b"2"}, "label 2 has no name; there are 2 class names"),
        (
            {"0.cls": b"a"},
            r"x\.tar, 0: has no images \(endings: cls\); name one by its ending with `image_column`",
        ),
    ],
)
def test_tars(members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    files(tmp_path, "classnames.txt", content=b"a\nb")
    refuse(save_tar(tmp_path / "x.tar", members), message)


Make = Callable[[Path], Any]
FILES: dict[str, tuple[Make, str]] = {
    "a folder of two kinds": (
        lambda f: files(f, "x.csv", "y.parquet"),
        r"is \.csv, \.parquet; give files of one kind",
    ),
    "a split of a folder": (
        lambda f: f"{files(f, 'train/a/0.png')}:trian",
        r":trian: no such folder or file; .*Did you mean 'train'\?",
    ),
    "a text missing": (
        lambda f: files(files(f, "0.png", "1.png"), "0.txt", content=b"a dog"),
        r"1 image has no text with captions \(of 2\): 1\.png; write it beside the image",
    ),
    "two image columns": (
        lambda f: save_plain_parquet(
            f / "x.parquet", {"left": [png(0)], "right": [png(1)], "label": ["a"]}
        ),
        r"no column 'image' \(columns: left, right, .*; name one with `image_column`",
    ),
    "damaged Parquet": (
        lambda f: files(f, "x.parquet") / "x.parquet",
        r"x\.parquet: cannot be read",
    ),
    "a link out of a tar": (
        lambda f: with_link(save_tar(f / "x.tar", {"a/0.png": png(0)}), "../../1.png"),
        r"x\.tar, a/1\.png: is a link to no file of the archive; write .*tar -h",
    ),
    "a damaged tar": (lambda f: files(f, "x.tar") / "x.tar", r"cannot be read as a tar archive"),
    "tars of two splits": (
        lambda f: save_tar(save_tar(f / "train-0.tar", {}).with_name("test-0.tar"), {}).parent,
        r"write one of its splits after a colon \(test, train\)",
    ),
    "a name that is no text": (
        lambda f: files(f, os.fsdecode(b"caf\xe9/0.png"), "bar/0.png"),
        r"'caf\\udce9' is not UTF-8; rename",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_files(kind: str, tmp_path: Path) -> None:
    make, message = FILES[kind]
    refuse(make(tmp_path), message)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((8, 8, 5), np.uint8),
        np.zeros((0, 0, 3), np.float32),
        np.full((8, 8), np.nan),
        -np.ones((3, 8, 8)),
    ],
)
def test_an_array_that_is_no_picture_is_refused(values: Any) -> None:
    images = load_images([(np.zeros((8, 8, 1), np.uint8), "a"), (values, "b")])
    assert images.image(0).size == (8, 8)
    with pytest.raises(DataError, match=r"image 1: is ndarray of .*, shape \(.*\); expected a"):
        images.image(1)


def test_classes_and_captions_at_once_are_refused() -> None:
    with pytest.raises(UsageError, match="`label_column` asks for classes and"):
        load_images("digits", columns=Columns(label="label", caption="text"))


def test_pictures_beside_class_folders_are_counted(tmp_path: Path) -> None:
    files(tmp_path, "a/0.png", "b/1.png", "2.png", "3.png", "4.jpg", "a/x.md")
    (note,) = load_images(tmp_path).notes
    assert note == (
        f"{tmp_path}: not read, because they are no images in a class folder: 2.png, 3.png, 4.jpg,"
        " x.md"
    )


def test_images_with_captions_are_refused_where_classes_are_needed(tmp_path: Path) -> None:
    files(files(tmp_path, "0.png"), "0.txt", content=b"a dog")
    with pytest.raises(DataError, match="have captions and no classes"):
        load_images(tmp_path)
    with pytest.raises(DataError, match="all images have the same captions"):
        open_images(tmp_path).require_classes()
    assert "`classes` is not used" in open_images(tmp_path, ["dog"]).notes[0]
