"""Batches: the same pixels in the same order as one image after another, however many threads
decode them."""

import threading
from pathlib import Path

import pytest
import torch

from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import DataError
from clipmerge.evaluation.accuracy import load_model
from clipmerge.images import batches
from clipmerge.images.batches import read_pixels
from clipmerge.images.image_set import pictures_in_files
from tests.support.image_files import load_images


def test_threads_prepare_the_same_bytes(
    images: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = load_images(images)
    to_pixels = load_model(open_checkpoint(str(pair[0]))).pixels
    expected = to_pixels([photos.image(position) for position in range(len(photos))])
    for cores in (1, 3):
        monkeypatch.setattr(batches, "cores_per_process", lambda cores=cores: cores)
        found = list(read_pixels(photos.pictures, 7, to_pixels))
        sizes = [(number, len(pixels)) for number, pixels in found]
        assert sizes == [(0, 7), (1, 7), (2, 7), (3, 7), (4, 2)]
        assert torch.equal(torch.cat([pixels for _, pixels in found]), expected)


def test_a_fault_is_raised_with_its_name_and_ends_the_threads(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"no image")
    pictures = pictures_in_files([*map(str, images.glob("bird/*")), str(path)])
    threads = torch.get_num_threads()
    with pytest.raises(DataError, match=r"x\.png: cannot be read as an image"):
        list(read_pixels(pictures, 2, lambda images: torch.zeros(len(images))))
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *found] == [threads, threads]
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")
    ]
