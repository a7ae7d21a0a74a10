"""Labelled images in the formats that data sets come in, written by the formats' own libraries."""

import io
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NAMES = ("bird", "red_fox", "dog")


def png(number: int, size: int = 32) -> bytes:
    """An image that is different for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3)).astype(np.uint8)
    return saved(Image.fromarray(pixels), "PNG")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A piece of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunk(image: Image.Image, piece: bytes) -> bytes:
    """A PNG with a piece right behind its header."""
    content = saved(image, "PNG")
    return content[:33] + piece + content[33:]


def drawn_over(times: int, side: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = saved(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * times + b"\xff\xd9"


def metadata(tags: int, size: int) -> bytes:
    """A TIFF block of as many tags, all of the same bytes."""
    place = 8 + 2 + 12 * tags + 4
    entries = b"".join(struct.pack("<HHII", 1000 + tag, 7, size, place) for tag in range(tags))
    return struct.pack("<2sHIH", b"II", 42, 8, tags) + entries + bytes(4 + size)


def decoded(content: bytes) -> bytes:
    """The RGB pixels of an encoded image."""
    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def assert_images(found: Any, numbers: Sequence[int]) -> None:
    """Check that a source holds these images of `png`, in order."""
    assert [found.image(at).tobytes() for at in range(len(found))] == [
        decoded(png(number)) for number in numbers
    ]


def features(names: Sequence[str] = NAMES, **more: Any) -> datasets.Features:
    return datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names)), **more}
    )


def save_hub_parquet(
    path: Path, labels: Sequence[int], *, first: int = 0, group: int = 100, **more: Any
) -> Path:
    """Write a file like `datasets`: image k is ``png(first + k)``."""
    images = [{"bytes": png(first + k), "path": f"{k}.png"} for k in range(len(labels))]
    columns = {"image": images, "label": list(labels)}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features(**more)).to_parquet(
        path, batch_size=group
    )
    return path


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
