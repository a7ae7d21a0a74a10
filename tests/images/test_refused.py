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


def table(folder: Path, text: str, name: str = "x.csv") -> Path:
    files(folder, "0.png", "1.png")
    (folder / name).write_text(text)
    return folder / name


def parquet(folder: Path, **columns: Any) -> Path:
    return save_plain_parquet(folder / "x.parquet", {"image": [png(0), png(1)], **columns})


def with_link(path: Path, target: str) -> Path:
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("a/1.png")
        info.type, info.linkname = tarfile.SYMTYPE, target
        archive.addfile(info)
    return path


Make = Callable[[Path], Any]
SOURCES: dict[str, tuple[Make, str]] = {
    "a set misspelled": (lambda _: "imagenetv3", r"Did you mean 'imagenetv2'\?"),
    "no name": (lambda _: " ", "names no images; give a folder"),
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
    "a row too long": (
        lambda f: table(f, "filepath,label\n0.png,a\n1.png,a,b\n"),
        r"x\.csv: cannot be read \(row 3 has more or fewer fields than row 1\)",
    ),
    "no rows": (lambda f: table(f, "filepath,label\n"), r"x\.csv: holds no images"),
    "no label": (lambda f: table(f, "filepath,size\n0.png,3\n"), r"no label or caption column"),
    "no image": (lambda f: table(f, "name,label\n0.png,a\n"), r"no image columns \(columns: name"),
    "an empty label": (
        lambda f: table(f, "filepath,label\n0.png,a\n1.png,\n"),
        r"x\.csv: 1 image has no label \(of 2\): .*1\.png; label them, leave them out",
    ),
    "no labels at all": (
        lambda f: parquet(f, label=[-1, -1]),
        r"2 images have no label .* or give a labelled split, such as validation",
    ),
    "two image columns": (
        lambda f: save_plain_parquet(
            f / "x.parquet", {"left": [png(0)], "right": [png(1)], "label": ["a"]}
        ),
        r"2 image columns \(columns: left, right, .*; name one with `image_column`",
    ),
    "damaged Parquet": (
        lambda f: files(f, "x.parquet") / "x.parquet",
        r"x\.parquet: cannot be read",
    ),
    "an unclosed quote": (
        lambda f: table(f, 'filepath,label\n0.png,"a\n1.png,b\n0.png,"a"\n'),
        r"x\.csv: cannot be read \(line 4: a quote that opens a field is not closed; close it",
    ),
    "a link out of a tar": (
        lambda f: with_link(save_tar(f / "x.tar", {"a/0.png": png(0)}), "../../1.png"),
        r"x\.tar, a/1\.png: is a link to no file of the archive; write .*tar -h",
    ),
    "a damaged tar": (lambda f: files(f, "x.tar") / "x.tar", r"cannot be read as a tar archive"),
    "a tar of damaged JSON": (
        lambda f: save_tar(f / "x.tar", {"0.png": png(0), "0.json": b"{"}),
        r"x\.tar, 0\.json: cannot be read as JSON",
    ),
    "a label without a name": (
        lambda f: save_tar(
            files(f, "classnames.txt", content=b"a\nb") / "x.tar", {"0.png": png(0), "0.cls": b"2"}
        ),
        "label 2 has no name; there are 2 class names",
    ),
    "a tar of JSON that is no object": (
        lambda f: save_tar(f / "x.tar", {"0.png": png(0), "0.json": b"7"}),
        r"1 image has no label \(of 1\): .*x\.tar, 0\.png",
    ),
    "a tar without an image": (
        lambda f: save_tar(f / "x.tar", {"0.cls": b"a"}),
        r"x\.tar, 0: has no images \(endings: cls\); name one by its ending with `image_column`",
    ),
    "tars of two splits": (
        lambda f: save_tar(save_tar(f / "train-0.tar", {}).with_name("test-0.tar"), {}).parent,
        r"which split\? \(splits: test, train\); write it after a colon",
    ),
    "one-hot labels": (
        lambda _: [(png(0), [0, 0, 1]), (png(1), [1, 0, 0])],
        r"\[0, 0, 1\] is not a label; .* \(of one-hot labels the argmax\)",
    ),
    "NaN as a label": (lambda _: [(png(0), float("nan"))], "nan is not a label; give a class"),
    "a name that is no text": (
        lambda f: files(f, os.fsdecode(b"caf\xe9/0.png"), "bar/0.png"),
        r"'caf\\udce9' is not UTF-8; rename",
    ),
    "no pairs": (lambda _: [png(0)], r"its items are not \(image, label\) or"),
    "a mapping": (lambda _: {"a": 1}, r"dict holds no labelled images; give a path"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    make, message = SOURCES[kind]
    source = make(tmp_path)
    with pytest.raises(DataError, match=message) as raised:
        open_images(source)
    assert "\n" not in str(raised.value)


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
