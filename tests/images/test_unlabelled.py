"""Images without labels: the same images from every kind of source, and nothing but images."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipmerge.errors import DataError, NoLabelsError
from clipmerge.images import Columns
from clipmerge.images.dataset import load_unlabelled, load_without_labels, open_images
from clipmerge.images.fingerprints import content_digest
from clipmerge.report.text import texts_of
from tests.support.hub_double import FakeHub, upload
from tests.support.image_files import save_plain_parquet, save_tar, saved

COUNT = 6


def png(number: int) -> bytes:
    return saved(Image.new("RGB", (8, 9), (20 * number,) * 3), "PNG")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """Images at three depths, beside files that are none."""
    for number, name in enumerate(
        ("0.png", "1.PNG", "a/2.png", "a/b/3.png", "a/b/4.png", "c/5.png")
    ):
        file = tmp_path / "nested" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))
    (tmp_path / "nested" / "notes.txt").write_text("not an image")
    (tmp_path / "nested" / ".hidden.png").write_bytes(b"")
    return tmp_path / "nested"


def colours(source: object, **asked: str) -> list[int]:
    images = load_unlabelled(source, Columns(**asked), max_images=100)
    assert set(images.labels) <= {0}
    return sorted(
        round(float(np.asarray(images.image(place)).mean()) / 20) for place in range(len(images))
    )


def test_a_folder_has_images_at_any_depth(nested: Path, tmp_path: Path) -> None:
    assert colours(str(nested)) == list(range(COUNT))
    assert colours(str(nested), image="picture", label="class") == list(range(COUNT))
    assert texts_of(load_unlabelled(str(nested), max_images=9).notes) == [
        f"{nested}: left out files that are not images (1 .txt)"
    ]
    (nested / "a" / "again").symlink_to(nested / "a")  # a circle is not followed
    assert colours(str(nested)) == list(range(COUNT))
    (tmp_path / "private.png").write_bytes(png(0))
    (nested / "a" / "b" / "out.png").symlink_to(tmp_path / "private.png")
    with pytest.raises(DataError, match=r"out\.png are links out of it"):
        load_unlabelled(str(nested), max_images=100)


def test_tables_and_tars_need_no_label_and_none_is_read(hub: FakeHub, tmp_path: Path) -> None:
    pixels = [png(number) for number in range(COUNT)]
    for columns in ({}, {"label": [[1]] * COUNT}, {"label": [None] * COUNT}):
        table = str(save_plain_parquet(tmp_path / "x.parquet", {"image": pixels, **columns}))
        assert colours(table) == colours(table, image="elsewhere") == list(range(COUNT))
    tar = save_tar(tmp_path / "a.tar", {f"{number}.png": png(number) for number in range(COUNT)})
    assert colours(str(tar)) == colours(str(tar), image="jpg", label="cls") == list(range(COUNT))
    upload(hub, "acme/cars", {"test/0.tar": tar.read_bytes()}, kind="dataset")
    assert colours("hf://datasets/acme/cars:test") == list(range(COUNT))


class Items(list[object]):
    """A data set in memory."""


def loader_of(pictures: list[Image.Image]) -> object:
    pixels = torch.stack([torch.from_numpy(np.asarray(each).copy()) for each in pictures])
    return torch.utils.data.DataLoader(pixels, batch_size=4)  # type: ignore[arg-type]


def test_every_kind_of_source_without_labels_is_told_from_other_faults(
    nested: Path, tmp_path: Path
) -> None:
    pixels = [png(number) for number in range(COUNT)]
    pictures = [Image.open(io.BytesIO(each)) for each in pixels]
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, each in enumerate(pixels):
        (flat / f"{number}.png").write_bytes(each)
    table = tmp_path / "files.csv"
    table.write_text("path\n" + "".join(f"flat/{number}.png\n" for number in range(COUNT)))
    no_column = save_plain_parquet(tmp_path / "x.parquet", {"image": pixels})
    no_label = save_plain_parquet(tmp_path / "y.parquet", {"image": pixels, "label": [-1] * COUNT})
    entries = {f"{number}.png": each for number, each in enumerate(pixels)}
    tar = save_tar(tmp_path / "a.tar", entries)
    sources = [*map(str, (flat, table, no_column, no_label, tar)), pictures, loader_of(pictures)]
    for source in sources:
        with pytest.raises(NoLabelsError):
            open_images(source, ["cat", "dog"], max_images=COUNT)
        images = load_without_labels(source, ["cat", "dog"], max_images=COUNT)
        assert images.class_names == ("cat", "dog")
        assert images.labelled_by is None
        assert len(images) == COUNT
        assert "its images have no labels" in texts_of(images.notes)[-1]
    partly = save_tar(tmp_path / "b.tar", {"0.png": pixels[0], "0.cls": b"1", "1.png": pixels[1]})
    some = save_plain_parquet(tmp_path / "z.parquet", {"image": pixels, "label": [-1, 0] * 3})
    for source in map(str, (partly, some, tmp_path / "nowhere")):
        with pytest.raises(DataError) as raised:
            open_images(source, ["cat", "dog"], max_images=COUNT)
        assert not isinstance(raised.value, NoLabelsError)


def test_names_of_images_without_labels_come_in_any_form(nested: Path, tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    file.write_text('{"a": "cat", "b": "dog"}')
    assert load_without_labels(str(nested), file, max_images=9).class_names == ("cat", "dog")
    file.write_text('["cat", ""]')
    with pytest.raises(DataError, match='"" is not a class name'):
        load_without_labels(str(nested), file, max_images=9)


def test_images_in_memory_may_come_alone_or_with_labels() -> None:
    pictures = [Image.open(io.BytesIO(png(number))) for number in range(COUNT)]
    assert colours(pictures) == list(range(COUNT))
    assert colours([(picture, "no label is read") for picture in pictures]) == list(range(COUNT))
    assert colours(Items({"image": picture} for picture in pictures)) == list(range(COUNT))
    floats = torch.randn(COUNT, 3, 8, 8)
    loader = torch.utils.data.DataLoader(floats, batch_size=4)  # type: ignore[arg-type]
    images = load_unlabelled(loader, max_images=5)
    assert torch.equal(images.store.batch(range(5)), floats[:5])  # type: ignore[attr-defined]
    texts = torch.utils.data.DataLoader(
        Items({"text": torch.zeros(3)} for _ in range(4)), batch_size=2
    )
    with pytest.raises(
        DataError, match=r"its batches are not images and do not hold 'pixel_values'"
    ):
        load_unlabelled(texts, max_images=10)


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    for source, said in (
        (
            str(tmp_path / "empty"),
            "empty: holds no images; name a folder, an archive or a dataset that has some",
        ),
        (
            str(tmp_path / "nowhere"),
            "nowhere: no such folder; .* or .without labels. with images at any depth",
        ),
        ([], "list in memory: holds no images"),
        (" ", "' ': names no images"),
    ):
        with pytest.raises(DataError, match=said):
            load_unlabelled(source, max_images=100)


def test_the_digest_is_of_content_and_order(nested: Path, tmp_path: Path) -> None:
    images = load_unlabelled(str(nested), max_images=100)
    expected = sha256(
        "".join(sha256(Path(path).read_bytes()) for path in images.store.paths).encode()
    )
    assert content_digest(images) == expected
    moved = nested.rename(tmp_path / "moved")
    images = load_unlabelled(str(moved), max_images=100)
    assert content_digest(images) == expected
    assert content_digest(images.subset([1, 0, 2, 3, 4, 5])) != expected
    (moved / "0.png").write_bytes(png(9))
    assert content_digest(images) != expected
    (moved / "0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png: cannot be read as an image"):
        content_digest(images)
    ready = [torch.full((3, 4, 4), float(number)) for number in range(3)]
    expected = sha256("".join(sha256(image[None].numpy().tobytes()) for image in ready).encode())
    assert content_digest(load_unlabelled(ready, max_images=3)) == expected
