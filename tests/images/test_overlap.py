import io
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from clipmerge.errors import UsageError
from clipmerge.images.dataset import load_images, open_images
from clipmerge.images.fingerprints import Fingerprints, check_overlap, find_overlap
from clipmerge.report.text import texts_of
from tests.support.command import done
from tests.support.image_files import png, save_hub_parquet, save_plain_parquet, save_tar
from tests.support.tiny_clip import Folders, save_images

NOT_COMPARED = (
    ": its images are preprocessed, so they were not compared with those of other sources"
)


def overlap_of(a: Path | str, b: Path | str) -> int:
    return len(find_overlap(Fingerprints(load_images(str(a))), Fingerprints(load_images(str(b)))))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return save_images(tmp_path / "other", each=4, seed=1)


def test_a_folder_overlaps_however_it_is_spelled_and_no_other(
    images: Path, other: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(images)
    for where in (images, images / ".." / images.name, tmp_path / "link"):
        assert overlap_of(where, images) == 30
    assert overlap_of(images, other) == 0
    (other / "dog" / "link.png").symlink_to(
        other / "cat" / "0.png"
    )  # a link to an image of the folder is read
    assert overlap_of(other, other) == 13


def test_one_file_is_enough_and_the_message_names_both(images: Path, other: Path) -> None:
    source, target = images / "cat" / "3.png", other / "dog" / "renamed.png"
    shutil.copyfile(source, target)
    loaded = {source: load_images(str(images)), target: load_images(str(other))}
    for ours, theirs in ((target, source), (source, target)):
        found = find_overlap(Fingerprints(loaded[ours]), Fingerprints(loaded[theirs]))
        assert found == [f"{ours} has the content of {theirs}"]
    content = bytearray(source.read_bytes())
    content[-20] ^= 1  # of the same size
    target.write_bytes(bytes(content))
    assert overlap_of(other, images) == 0


def test_pixels_shared_between_a_table_a_tar_and_a_folder_are_seen(tmp_path: Path) -> None:
    table = load_images(str(save_hub_parquet(tmp_path / "x.parquet", [0, 1, 2])))
    members = {"a.png": png(1), "a.txt": b"a", "b.png": png(9), "b.txt": b"b"}
    tar = load_images(str(save_tar(tmp_path / "x.tar", members)))
    (tmp_path / "f/a").mkdir(parents=True)
    Image.open(io.BytesIO(png(2))).save(tmp_path / "f/a/saved-anew.bmp")
    folder = load_images(str(tmp_path / "f"))
    shared = find_overlap(Fingerprints(table), Fingerprints(tar))
    assert shared == [f"{tmp_path}/x.parquet, row 1 has the pixels of {tmp_path}/x.tar, a.png"]
    assert not find_overlap(Fingerprints(folder), Fingerprints(tar))
    with pytest.raises(
        UsageError, match=r"`ood` far: 1 image is also in the calibration source .*saved-anew"
    ):
        check_overlap(table, {}, {"far": folder})


def test_images_of_other_tasks_are_compared_with_all_others(
    images: Path, other: Path, tmp_path: Path
) -> None:
    captioned = tmp_path / "captioned"
    captioned.mkdir()
    for name, source in (("a", images / "cat" / "3.png"), ("b", other / "dog" / "1.png")):
        shutil.copyfile(source, captioned / f"{name}.png")
        (captioned / f"{name}.txt").write_text("a caption")
    (tmp_path / "dataset_type.txt").write_text("retrieval")
    tar = save_tar(
        tmp_path / "x.tar", {"a.png": (other / "dog" / "2.png").read_bytes(), "a.txt": b"a caption"}
    )
    tasks = {"folder": open_images(str(captioned)), "tar": open_images(str(tar))}
    calibration, far = load_images(str(images)), load_images(str(other))
    notes = texts_of(check_overlap(calibration, {}, {"far": far}, tasks=tasks))
    assert [note.partition(" (")[0] for note in notes] == [
        "`keep` folder: 1 image is also in the calibration source",
        "`keep` folder: 1 image is also in `ood` far",
        "`keep` tar: 1 image is also in `ood` far",
    ]


def test_images_that_cannot_be_compared_are_named(images: Path, other: Path) -> None:
    """So that nothing is said to have been checked which was not."""
    pixels = load_images([(torch.zeros(3, 32, 32), "cat"), (-torch.ones(3, 32, 32), "dog")])
    near, far = load_images(str(images)), load_images(str(other))
    assert check_overlap(near, {}, {"far": far}) == []
    assert texts_of(check_overlap(near, {}, {"far": pixels})) == [f"`ood` far{NOT_COMPARED}"]
    assert texts_of(check_overlap(pixels, {}, {"far": far})) == [
        f"the calibration source{NOT_COMPARED}"
    ]
    assert texts_of(check_overlap(near, {}, {"far": far}, pixels)) == [
        f"`unlabelled`{NOT_COMPARED}"
    ]


def test_copies_inside_a_source_are_counted(images: Path, other: Path, tmp_path: Path) -> None:
    """In a folder and in a tar, byte for byte; other forms of one image are not copies."""
    for number in range(2):
        shutil.copyfile(other / "cat" / "0.png", other / "dog" / f"again-{number}.png")
    tar = save_tar(
        tmp_path / "x.tar", {"a.png": png(1), "a.txt": b"a", "b.png": png(1), "b.txt": b"b"}
    )
    near, far, tar = (load_images(str(source)) for source in (images, other, tar))
    pixels = load_images([(torch.zeros(3, 32, 32), "a")] * 2)
    notes = check_overlap(None, {"near": near, "tar": tar}, {"far": far, "pixels": pixels})
    assert texts_of(notes) == [
        f"`ood` pixels{NOT_COMPARED}",
        "`id` tar: 1 image is a copy of others in it; each counts in its accuracy",
        "`ood` far: 2 images are copies of others in it; each counts in its accuracy",
    ]


def test_evaluate_says_that_images_repeat(pair: Folders, tmp_path: Path) -> None:
    columns = {"image": [png(1), png(2), png(1)], "label": ["cat", "dog", "cat"]}
    table = save_plain_parquet(tmp_path / "twice.parquet", columns)
    assert (
        "--data twice: 1 image is a copy of others in it; each counts in its accuracy"
        in done("evaluate", pair[1], "--data", f"twice={table}").err
    )
