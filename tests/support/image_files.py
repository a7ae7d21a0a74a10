"""Labelled images in the formats that data sets come in, written by the formats' own libraries."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipmerge.images.dataset import open_images, require_labelled
from clipmerge.images.digits import read_digits
from clipmerge.images.image_set import LabelledImages


def png(number: int) -> bytes:
    """A digit in noise, different for every number: four fives, four fours, four twos, and again."""
    ink, labels = read_digits()
    of_digit = (labels == (5, 4, 2)[number // 4 % 3]).nonzero().flatten().tolist()
    shown = ink[of_digit[(number // 12 * 4 + number % 4) % len(of_digit)]].numpy()
    noise = np.random.default_rng(number).normal(size=(32, 32, 3))
    pixels = (shown.transpose(1, 2, 0) + noise).clip(0, 1)
    return saved(Image.fromarray((255 * pixels).astype(np.uint8)), "PNG")


def load_images(source: Any, classes: Any = None, *, columns: Any = None) -> LabelledImages:
    """Find images with classes; images with captions are refused."""
    return require_labelled(open_images(source, classes, columns=columns))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def assert_images(found: Any, numbers: Sequence[int]) -> None:
    """Check that a source holds these images of `png`, in order."""
    expected = [Image.open(io.BytesIO(png(number))).convert("RGB") for number in numbers]
    assert [found.image(at).tobytes() for at in range(len(found))] == [
        image.tobytes() for image in expected
    ]


def save_plain_parquet(path: Path, columns: Mapping[str, Any]) -> Path:
    """Write columns without the metadata of `datasets`."""
    pq.write_table(pa.table(dict(columns)), path)
    return path


def save_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
