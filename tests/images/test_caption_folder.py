"""Folders of images with captions beside them, and the faults that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clipmerge.errors import DataError
from clipmerge.images import caption_folder
from clipmerge.images.caption_folder import read_captioned
from clipmerge.images.retrieval import load_captions
from tests.support.image_files import png


def save(folder: Path, names: str = "ab") -> Path:
    folder.mkdir()
    for name in names:
        (folder / f"{name}.png").write_bytes(png(0))
        (folder / f"{name}.txt").write_text(f"a {name}\n\n an image of {name} \n")
    return folder


def test_each_line_is_a_caption_of_the_image_beside_it(tmp_path: Path) -> None:
    files, captions, notes = read_captioned("here", save(tmp_path / "x"))
    assert notes == ()
    assert [Path(path).name for path in files.paths] == ["a.png", "b.png"]
    assert captions == (("a a", "an image of a"), ("a b", "an image of b"))


def link_out(folder: Path) -> None:
    (folder.parent / "secret.png").write_bytes(png(1))
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(folder.parent / "secret.png")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "alone": (lambda folder: (folder / "a.txt").unlink(), r"here: a\.png has no captions beside it"),
    "empty": (lambda folder: (folder / "a.txt").write_text(" \n"), r"here: a\.txt holds no caption"),
    "not a text": (lambda folder: (folder / "a.txt").write_bytes(b"\xff\xfe\xff"), r"here: a\.txt cannot be read"),
    "a link out of it": (link_out, r"here: a\.png are links out of it"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_the_file(tmp_path: Path, fault: str) -> None:
    folder = save(tmp_path / "x")
    make, told = FAULTS[fault]
    make(folder)
    with pytest.raises(DataError, match=told):
        read_captioned("here", folder)


def test_more_images_than_any_source_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_folder, "MOST_IMAGES", 1)
    with pytest.raises(DataError, match="here: has more than 1 images"):
        read_captioned("here", save(tmp_path / "x"))


def test_a_text_whose_image_is_not_read_is_counted(tmp_path: Path) -> None:
    folder = save(tmp_path / "x")
    for name in ("c", "d"):
        (folder / f"{name}.heic").write_bytes(b"x")
        (folder / f"{name}.txt").write_text("a caption")
    assert load_captions(str(folder)).notes == (
        f"{folder}: left out 2 texts without an image beside them (c.txt, d.txt)",
    )
