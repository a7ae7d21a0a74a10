"""Batches: the same pixels in the same order as one image after another, however many threads
decode them."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import DataError
from clipmerge.evaluation.accuracy import load_model
from clipmerge.images import batches
from clipmerge.images.batches import read_pixels
from clipmerge.images.image_set import LabelledImages, pictures_in_files
from tests.support.image_files import load_images


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    """23 images of two classes, of several sizes and formats."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(23):
        file = folder / "ab"[number % 2] / f"{number:02}.{('png', 'jpg', 'webp')[number % 3]}"
        file.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (20 + 3 * number, 60, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    return load_images(str(folder))


def test_threads_prepare_the_same_bytes(
    photos: LabelledImages, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    to_pixels = load_model(open_checkpoint(str(pair[0]))).pixels
    expected = to_pixels([photos.image(position) for position in range(len(photos))])
    for cores in (1, 3):
        monkeypatch.setattr(batches, "cores_per_process", lambda cores=cores: cores)
        found = list(read_pixels(photos.pictures, 5, to_pixels))
        sizes = [(number, len(pixels)) for number, pixels in found]
        assert sizes == [(0, 5), (1, 5), (2, 5), (3, 5), (4, 3)]
        assert torch.equal(torch.cat([pixels for _, pixels in found]), expected)


def test_a_fault_is_raised_with_its_name_and_ends_the_threads(
    photos: LabelledImages, tmp_path: Path
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"no image")
    pictures = pictures_in_files([photos.pictures[0], photos.pictures[1], str(path)])
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
