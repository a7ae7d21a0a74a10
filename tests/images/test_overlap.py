from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from clipmerge.errors import DataError
from clipmerge.images.dataset import load_images
from clipmerge.images.overlap import Fingerprints, check_overlap, find_overlap
from clipmerge.images.retrieval import load_captions
from tests.support.image_files import save_tar
from tests.support.tiny_clip import save_images


def overlap_of(a: Path | str, b: Path | str) -> int:
    found = find_overlap(Fingerprints(load_images(str(a))), Fingerprints(load_images(str(b))))
    return found.count if found else 0


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return save_images(tmp_path / "other", each=4, seed=1)


def test_different_images_do_not_overlap(images: Path, other: Path) -> None:
    assert overlap_of(images, other) == 0


@pytest.mark.parametrize("spelled", ["same", "dots", "folder link"])
def test_the_same_folder_overlaps_however_it_is_spelled(images: Path, tmp_path: Path, spelled: str) -> None:
    where = {"same": images, "dots": images / ".." / images.name, "folder link": tmp_path / "link"}[spelled]
    if spelled == "folder link":
        where.symlink_to(images)
    assert overlap_of(where, images) == 30


@pytest.mark.parametrize("how", ["hard link", "copy"])
def test_one_file_is_enough(images: Path, other: Path, how: str) -> None:
    source, target = images / "cat" / "3.png", other / "dog" / "renamed.png"
    if how == "copy":
        shutil.copyfile(source, target)
    else:
        target.hardlink_to(source)
    found = find_overlap(Fingerprints(load_images(str(other))), Fingerprints(load_images(str(images))))
    assert found
    assert (found.count, found.first) == (1, f"{target} {'has the content of' if how == 'copy' else 'is'} {source}")
    back = find_overlap(Fingerprints(load_images(str(images))), Fingerprints(load_images(str(other))))
    assert back
    assert (back.count, back.first) == (1, f"{source} {'has the content of' if how == 'copy' else 'is'} {target}")


def test_a_file_of_the_same_size_and_other_content_is_none(images: Path, other: Path) -> None:
    source, target = images / "cat" / "3.png", other / "dog" / "renamed.png"
    content = bytearray(source.read_bytes())
    content[-20] ^= 1
    target.write_bytes(bytes(content))
    assert source.stat().st_size == target.stat().st_size
    assert overlap_of(other, images) == 0


@pytest.mark.slow
def test_digits_overlap_with_digits_and_with_a_folder_that_holds_one(other: Path) -> None:
    assert overlap_of("digits", "digits") >= 1790  # of 1797, a few are alike
    assert overlap_of("digits", other) == 0
    digit = load_images("digits").image(5)
    digit.save(other / "dog" / "five.bmp")
    assert overlap_of("digits", other) == overlap_of(other, "digits") == 1


def test_the_message_names_both(images: Path, other: Path) -> None:
    shutil.copyfile(images / "cat" / "3.png", other / "dog" / "copy.png")
    found = find_overlap(Fingerprints(load_images(str(other))), Fingerprints(load_images(str(images))))
    assert found
    assert found.first == f"{other}/dog/copy.png has the content of {images}/cat/3.png"


@pytest.mark.parametrize("first", [True, False])
def test_an_image_that_is_gone_is_reported_as_where_it_is_read(images: Path, other: Path, first: bool) -> None:
    found, rest = load_images(str(other)), load_images(str(images))
    gone = other / "cat" / "0.png"
    gone.unlink()
    with pytest.raises(DataError, match=r"cat/0\.png: cannot be read as an image \(.*\); repair or remove it") as read:
        found.image(found.store.paths.index(str(gone)))
    with pytest.raises(DataError, match=f"^{re.escape(str(read.value))}$"):
        find_overlap(*map(Fingerprints, (found, rest) if first else (rest, found)))


def test_a_folder_that_is_called_like_an_image(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "class" / "x.png").mkdir(parents=True)
    with pytest.raises(DataError, match=r"a/class: holds folders \(x\.png\), not images"):
        overlap_of(tmp_path / "a", tmp_path / "b")


def test_a_link_to_an_image_of_the_folder_is_read(other: Path) -> None:
    (other / "dog" / "link.png").symlink_to(other / "cat" / "0.png")
    assert overlap_of(other, other) == 13


def test_images_of_other_tasks_are_compared_with_all_others(images: Path, other: Path, tmp_path: Path) -> None:
    captioned = tmp_path / "captioned"
    captioned.mkdir()
    for name, source in (("a", images / "cat" / "3.png"), ("b", other / "dog" / "1.png")):
        shutil.copyfile(source, captioned / f"{name}.png")
        (captioned / f"{name}.txt").write_text("a caption")
    tar = save_tar(tmp_path / "x.tar", {"a.png": (other / "dog" / "2.png").read_bytes(), "a.txt": b"a caption"})
    tasks = {"folder": load_captions(str(captioned)), "tar": load_captions(str(tar))}
    calibration, far = load_images(str(images)), load_images(str(other))
    notes = check_overlap(calibration, {}, {"far": far}, tasks=tasks)
    assert [note.partition(" (")[0] for note in notes] == [
        "--keep folder: 1 image is also in the calibration source",
        "--keep folder: 1 image is also in --ood far",
        "--keep tar: 1 image is also in --ood far",
    ]
