"""Pictures of one source, in a Parquet file that `datasets` and clipmerge read alike."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, normalize

_THUMB = 16
#: Ends the second of two classes that share a name; its prompts are those of the first.
_AGAIN = " (again)"


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        domain: The kind of pictures that it belongs to.
        label: Class, as it stands in prompts.
        data: The encoded file.
    """

    domain: str
    label: str
    data: bytes

    def image(self) -> Image.Image:
        with Image.open(io.BytesIO(self.data)) as opened:
            return opened.convert("RGB")


class Album:
    """Pictures that are drawn here, in their order."""

    def __init__(self) -> None:
        self.pictures: list[Picture] = []

    def add(self, domain: str, pixels: Tensor, labels: Iterable[str]) -> list[int]:
        """Add RGB in [0, 1], shape (N, 3, H, W), and return the positions."""
        start = len(self.pictures)
        for image, label in zip(pixels, labels, strict=True):
            self.pictures.append(Picture(domain, label, as_png(image)))
        return list(range(start, len(self.pictures)))


def of_domains(pictures: Iterable[Picture]) -> dict[str, list[int]]:
    """Positions of the pictures of each domain."""
    found: dict[str, list[int]] = {}
    for at, picture in enumerate(pictures):
        found.setdefault(picture.domain, []).append(at)
    return found


@dataclass(frozen=True)
class Source:
    """The pictures of one role.

    Attributes:
        images: RGB, all of one size or not.
        labels: Index into ``classes``, shape (N,).
        things: What each picture shows; pictures of one thing are resampled together.
        classes: Class names; of a name that occurs twice, the first is the right one.
    """

    images: list[Image.Image]
    labels: Tensor
    things: np.ndarray
    classes: tuple[str, ...]


def write_source(
    file: Path, pictures: Sequence[Picture], things: Sequence[int], classes: Sequence[str]
) -> None:
    """Write pictures, completely or not at all."""
    unique: list[str] = []
    for name in classes:
        unique.append(name + _AGAIN if name in unique else name)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=unique),
            "thing": datasets.Value("int64"),
        }
    )
    columns = {
        "image": [{"bytes": each.data, "path": None} for each in pictures],
        "label": [unique.index(each.label) for each in pictures],
        "thing": list(things),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".part")
    datasets.Dataset.from_dict(columns, features).to_parquet(scratch)
    scratch.rename(file)


def read_source(file: Path) -> Source:
    """Read what `write_source` wrote."""
    table = datasets.Dataset.from_parquet(str(file), keep_in_memory=True)
    names = table.features["label"].names
    return Source(
        [image.convert("RGB") for image in table["image"]],
        torch.tensor(table["label"]),
        np.array(table["thing"]),
        tuple(name.removesuffix(_AGAIN) for name in names),
    )


def square(image: Image.Image, size: int) -> Tensor:
    """RGB of 8 bits, shape (size, size, 3): the shorter side scaled, the centre cut out."""
    scale = size / min(image.size)
    width = max(size, round(image.width * scale))
    height = max(size, round(image.height * scale))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left = (width - size) // 2
    top = (height - size) // 2
    cut = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.asarray(cut).copy())


def pixels_of(images: Iterable[Image.Image], size: int) -> Tensor:
    """RGB of 8 bits, shape (N, 3, size, size), channels last in memory."""
    pixels = torch.stack([square(image, size) for image in images])
    return pixels.permute(0, 3, 1, 2)


def as_png(pixels: Tensor) -> bytes:
    """Encode RGB in [0, 1], shape (3, H, W)."""
    bytes_ = (pixels * 255).round().byte()
    image = Image.fromarray(bytes_.permute(1, 2, 0).numpy())
    return encoded(image, "png")


def encoded(image: Image.Image, form: str) -> bytes:
    """The file of a picture, as ``png`` or ``jpeg``."""
    file = io.BytesIO()
    image.save(file, form, quality=95)
    return file.getvalue()


def read_tar(file: Path) -> list[tuple[str, bytes]]:
    """Name and content of every file, by name."""
    with tarfile.open(file) as archive:
        files = [each for each in archive if each.isfile()]
        files.sort(key=lambda each: each.name)
        return [(each.name, archive.extractfile(each).read()) for each in files]


def alike_pixels(pictures: Sequence[Picture], least: float) -> dict[tuple[int, int], float]:
    """Correlation of thumbnails, mirrored ones too, for the pairs in which it is large."""
    pixels = pixels_of((each.image() for each in pictures), 2 * _THUMB)
    thumbs = interpolate(pixels.float(), (_THUMB, _THUMB), mode="area")
    centred = thumbs - thumbs.mean(dim=(2, 3), keepdim=True)
    plain = normalize(centred.flatten(1), dim=1)
    mirrored = normalize(centred.flip(-1).flatten(1), dim=1)
    return _large(plain, (plain, mirrored), least)


def alike_features(features: Tensor, least: float) -> dict[tuple[int, int], float]:
    """Cosine of centred features, shape (N, width), for the pairs in which it is large."""
    centred = normalize(features - features.mean(dim=0), dim=1)
    return _large(centred, (centred,), least)


def _large(
    left: Tensor, right: Sequence[Tensor], least: float, block: int = 500
) -> dict[tuple[int, int], float]:
    found = {}
    for start in range(0, len(left), block):
        rows = left[start : start + block]
        cosines = torch.stack([rows @ each.T for each in right]).amax(dim=0)
        for row, column in (cosines > least).nonzero().tolist():
            if start + row < column:
                found[start + row, column] = cosines[row, column].item()
    return found


def by_group(positions: Iterable[int], groups: Sequence[int]) -> dict[int, list[int]]:
    """Those of these positions that each group has."""
    members: dict[int, list[int]] = {}
    for at in positions:
        members.setdefault(groups[at], []).append(at)
    return members


def taken(members: dict[int, list[int]], order: list[int], wanted: int) -> list[int]:
    """So many positions or a few more, whole groups from the end of the order, which is cut."""
    found: list[int] = []
    while len(found) < wanted:
        found += members[order.pop()]
    return found


def grouped(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Group of each of ``count`` pictures, if these pairs belong together.

    Example:
        >>> grouped(4, [(0, 2), (2, 3)])
        [3, 1, 3, 3]
    """
    group = list(range(count))

    def of(at: int) -> int:
        while group[at] != at:
            group[at] = group[group[at]]
            at = group[at]
        return at

    for one, other in pairs:
        group[of(one)] = of(other)
    return [of(at) for at in range(count)]
