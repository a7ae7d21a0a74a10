"""Pictures in tar files, and which of them are near-copies of each other."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from clipmerge.errors import DataError

PACS = ("dog", "elephant", "guitar", "horse", "house")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
#: Tar file of each domain; PACS and CIFAR-10 hold CLASS/NAME.jpg, ImageNet one picture of each
#: class in class order.
TARS = {
    "photo": "pacs-photo.tar",
    "art": "pacs-art.tar",
    "sketch": "pacs-sketch.tar",
    "imagenet": "imagenet-samples.tar",
    "cifar10-train": "cifar10-train.tar",
    "cifar10": "cifar10-test.tar",
}
SIZE = 160
_THUMB = 16


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        domain: Key of `TARS`.
        label: Class, as it stands in prompts.
        data: The encoded file.
    """

    domain: str
    label: str
    data: bytes

    def pixels(self, size: int = SIZE) -> Tensor:
        """RGB of 8 bits, shape (size, size, 3): the shorter side scaled, the centre cut out, as
        CLIP does."""
        with Image.open(io.BytesIO(self.data)) as opened:
            image = opened.convert("RGB")
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        return torch.from_numpy(np.asarray(image.crop((left, top, left + size, top + size))).copy())


def load_collection(folder: Path, imagenet: Sequence[str]) -> list[Picture]:
    """Read every picture; the order, and so the position of a picture, depends on the files
    alone."""
    found: list[Picture] = []
    for domain, name in TARS.items():
        if not (folder / name).is_file():
            raise DataError(
                f"{folder}: has no {name}; benchmarks/README.md says which files the pictures"
                " come in"
            )
        read = read_tar(folder / name)
        labels = (
            list(imagenet) if domain == "imagenet" else [file.partition("/")[0] for file, _ in read]
        )
        if len(labels) != len(read):
            raise DataError(
                f"{folder / name}: has {len(read)} pictures; expected one of each of {len(labels)}"
                " classes"
            )
        found += [
            Picture(domain, label, data) for label, (_, data) in zip(labels, read, strict=True)
        ]
    return found


def read_tar(file: Path) -> list[tuple[str, bytes]]:
    """Name and content of every file, by name."""
    with tarfile.open(file) as archive:
        members = sorted(
            (member for member in archive if member.isfile()), key=lambda member: member.name
        )
        return [
            (member.name, opened.read())
            for member in members
            if (opened := archive.extractfile(member))
        ]


def alike_pixels(
    pictures: Sequence[Picture], least: float, block: int = 500
) -> dict[tuple[int, int], float]:
    """Correlation of thumbnails, mirrored ones too, for the pairs in which it is large."""
    small = [picture.pixels(2 * _THUMB).permute(2, 0, 1).float() for picture in pictures]
    thumbs = interpolate(torch.stack(small), (_THUMB, _THUMB), mode="area")
    centred = thumbs - thumbs.mean(dim=(2, 3), keepdim=True)
    plain, mirrored = (normalize(each.flatten(1), dim=1) for each in (centred, centred.flip(-1)))
    return _large(plain, (plain, mirrored), least, block)


def alike_features(
    features: Tensor, least: float, block: int = 500
) -> dict[tuple[int, int], float]:
    """Cosine of centred features, shape (N, width), for the pairs in which it is large; see
    `alike_pixels`."""
    centred = normalize(features - features.mean(dim=0), dim=1)
    return _large(centred, (centred,), least, block)


def _large(
    left: Tensor, right: Sequence[Tensor], least: float, block: int
) -> dict[tuple[int, int], float]:
    found = {}
    for start in range(0, len(left), block):
        rows = left[start : start + block]
        cosines = torch.stack([rows @ each.T for each in right]).amax(dim=0)
        for row, column in (cosines > least).nonzero().tolist():
            if start + row < column:
                found[start + row, column] = cosines[row, column].item()
    return found


def grouped(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Group of each of ``count`` pictures, if these pairs belong together: the position of one
    picture of the group."""
    group = list(range(count))

    def of(at: int) -> int:
        while group[at] != at:
            group[at] = group[group[at]]
            at = group[at]
        return at

    for one, other in pairs:
        group[of(one)] = of(other)
    return [of(at) for at in range(count)]
