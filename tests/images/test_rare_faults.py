"""Faults of sources that are rare, each refused in one line: sizes, files that shrink, cards, and odd kinds of data."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clipmerge.errors import DataError, HubError
from clipmerge.hub.download import download
from clipmerge.hub.ids import HubId
from clipmerge.images import folder as folders
from clipmerge.images import hub_dataset, parquet, webdataset
from clipmerge.images.dataset import load_images
from clipmerge.images.decoding import decode
from clipmerge.images.hub_dataset import front_matter
from clipmerge.images.retrieval import has_captions, load_captions
from clipmerge.images.unlabelled import load_unlabelled
from tests.support.hub_double import FakeHub, upload
from tests.support.image_files import png, save_hub_parquet, save_plain_parquet, save_tar

CARS = "hf://datasets/acme/cars"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return save_plain_parquet(
        tmp_path / "x.parquet", {"image": [png(k) for k in range(9)], "label": ["a", "b", "c"] * 3}
    )


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return save_tar(tmp_path / "x.tar", {"a.png": png(0), "a.txt": b"a", "b.png": png(1), "b.txt": b"b"})


# in the footer: 9 rows of the file (i64, before the list of row groups), and of its row group (i64, before a place)
ROWS, MORE_ROWS = b"\x16\x12\x19", b"\x16\x14\x19"
GROUP, LARGER_GROUP = b"\x16\x12\x26", b"\x16\x14\x26"


def with_footer(table: Path, *changes: tuple[bytes, bytes]) -> str:
    data = table.read_bytes()
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = data[begin:]
    for before, after in changes:
        assert before in footer
        footer = footer.replace(before, after, 1)
    table.write_bytes(data[:begin] + footer)
    return str(table)


def test_a_footer_that_tells_of_more_rows_than_there_are(table: Path) -> None:
    file = with_footer(table, (ROWS, MORE_ROWS))
    with pytest.raises(DataError, match=r"its row groups do not add up to its number of rows"):
        load_images(file)
    file = with_footer(table, (GROUP, LARGER_GROUP))
    with pytest.raises(DataError, match=r"it has fewer labels than its footer says"):
        load_images(file)
    found = load_unlabelled(file, most=99)
    assert found.image(8).tobytes() == Image.open(io.BytesIO(png(8))).tobytes()
    with pytest.raises(DataError, match=r"it has fewer rows than its footer says"):
        found.image(9)


def test_an_image_that_is_too_large(table: Path, tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (parquet, webdataset):
        monkeypatch.setattr(module, "LARGEST_IMAGE", 1024)
    with pytest.raises(DataError, match=r"x\.parquet, row 0: its image is larger than 1 KiB"):
        load_images(str(table)).image(0)
    with pytest.raises(DataError, match=r"x\.tar, a\.png: is larger than 1 KiB"):
        load_images(str(tar)).image(0)


def test_an_archive_that_shrinks_while_it_is_read(tar: Path) -> None:
    found = load_images(str(tar))
    tar.write_bytes(tar.read_bytes()[:4200])
    with pytest.raises(DataError, match=r"x\.tar"):
        found.image(1)


def test_a_folder_of_too_many_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MOST_IMAGES", 2)
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    with pytest.raises(DataError, match="has more than 2 images; give a folder of some of them"):
        load_unlabelled(str(tmp_path), most=10)


def test_a_folder_that_is_gone_when_it_is_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: cannot be read \(No such file or directory\)"):
        folders._listed("x", tmp_path, tmp_path / "gone")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_text_in_the_place_of_metadata_is_refused(zipped: bool) -> None:
    note, file = PngInfo(), io.BytesIO()
    note.add_text("exif", "a text", zip=zipped)  # Pillow returns only an unzipped one as bytes
    Image.new("RGB", (4, 4), 7).save(file, "PNG", pnginfo=note)
    with pytest.raises(DataError, match=r"x: cannot be read as an image \(.*\); repair or remove it"):
        decode("x", {"bytes": file.getvalue(), "path": None})


def test_cards_that_are_too_large_or_refer_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_dataset, "LARGEST_FRONT_MATTER", 100)
    with pytest.raises(DataError, match=r"reading the card of x: its metadata are larger than"):
        front_matter("x", "---\n" + "a: b\n" * 30 + "---\n")
    with pytest.raises(DataError, match=r"its metadata hold an alias \(\*name\), which is not followed"):
        front_matter("x", "---\na: &a [1]\nb: *a\n---\n")
    assert front_matter("x", "---\na: [1]\n---\n") == {"a": [1]}


def test_a_card_that_is_no_text(hub: FakeHub, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(
        hub,
        "acme/cars",
        {"README.md": b"---\nlicense: mit\n---\n" + b"# Cars" * 30, "test.parquet": table.read_bytes()},
        kind="dataset",
    )
    monkeypatch.setattr(hub_dataset, "LARGEST_TEXT", 100)
    with pytest.raises(DataError, match=rf"reading the card of {CARS}@.*: it cannot be read"):
        load_images(f"{CARS}:test")


def test_offline_without_images(hub: FakeHub, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"README.md": b"---\nlicense: mit\n---\n", "test.parquet": table.read_bytes()}
    sha = upload(hub, "acme/cars", files, kind="dataset")
    download(HubId("acme/cars", sha, "dataset"), ["README.md"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises((DataError, HubError), match=r"not in the cache"):
        load_images(f"{CARS}@{sha}:test")


def test_folders_are_configurations(hub: FakeHub, tmp_path: Path) -> None:
    parts = {name: save_hub_parquet(tmp_path / f"{name}.parquet", [0, 1], first=at).read_bytes() for name, at in SETS}
    upload(hub, "acme/cars", {f"{name}/test.parquet": data for name, data in parts.items()}, kind="dataset")
    assert load_images(f"{CARS}:large/test").labels == (0, 1)
    with pytest.raises(DataError, match=r"no configuration 'huge' \(folders: large, small\)"):
        load_images(f"{CARS}:huge/test")


SETS = (("small", 0), ("large", 10))


def test_a_card_that_names_other_files(hub: FakeHub, table: Path) -> None:
    card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: x.csv\n---\n"
    upload(hub, "acme/cars", {"README.md": card, "x.csv": b"a", "y.parquet": table.read_bytes()}, kind="dataset")
    with pytest.raises(DataError, match=r"the files that its card names are not Parquet or tar files"):
        load_images(f"{CARS}:test")


def test_tars_of_the_hub_need_no_labels(hub: FakeHub, tmp_path: Path) -> None:
    data = save_tar(tmp_path / "x.tar", {"a.png": png(0), "b.png": png(1)}).read_bytes()
    upload(hub, "acme/cars", {"test/0.tar": data}, kind="dataset")
    found = load_unlabelled(f"{CARS}:test", most=10)
    assert len(found) == 2
    assert found.image(1).tobytes() == Image.open(io.BytesIO(png(1))).tobytes()


class Items(list[Any]):
    """A data set in memory."""


def test_images_in_memory_under_a_name_or_none() -> None:
    picture = Image.new("RGB", (4, 4), 7)
    named = load_unlabelled(Items({"image": picture} for _ in range(3)), most=10)
    assert len(named) == 3
    loader = torch.utils.data.DataLoader(Items({"text": torch.zeros(3)} for _ in range(4)), batch_size=2)
    with pytest.raises(DataError, match=r"its batches are not images and do not hold 'pixel_values'"):
        load_unlabelled(loader, most=10)


def test_which_sources_have_captions(hub: FakeHub, table: Path, tar: Path, tmp_path: Path) -> None:
    assert has_captions("flickr8k")
    assert not has_captions("fusionbench-eurosat")
    assert not has_captions(str(tar))
    assert not has_captions(str(tmp_path))
    assert not has_captions(str(tmp_path / "nowhere"))
    upload(hub, "acme/cars", {"test.parquet": table.read_bytes()}, kind="dataset")
    assert not has_captions(f"{CARS}:test")
    with pytest.raises(DataError, match="holds Parquet files; images with captions are read from tar files"):
        load_captions(f"{CARS}:test")
    with pytest.raises(DataError, match=r"empty\.tar: holds no images"):
        load_captions(str(save_tar(tmp_path / "empty.tar", {})))


def test_long_names_in_an_archive(tmp_path: Path) -> None:
    """In POSIX's own format a long name stands in a header of its own before the file."""
    name = "folder/" * 30 + "é"
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for ending, data in (("png", png(0)), ("cls", b"1"), ("txt", b"a cat")):
            member = tarfile.TarInfo(f"{name}.{ending}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    found = load_unlabelled(str(tmp_path / "x.tar"), most=10)
    assert found.image(0).tobytes() == Image.open(io.BytesIO(png(0))).tobytes()
