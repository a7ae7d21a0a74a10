"""Fashion-MNIST, read from Debian's package, and corruptions of its pictures."""

from __future__ import annotations

import gzip
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate

from clipmerge.demo.data import SIZE
from clipmerge.errors import DataError

PACKAGE = "dataset-fashion-mnist"
#: Class folders in the order of the data set's labels.
LABELS = ("t_shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot")
_INSTALLED = Path("/usr/share/datasets/fashion-mnist")


def load_clothes(folder: Path, part: str, count: int) -> tuple[Tensor, Tensor]:
    """Read the first clothes of one part of Fashion-MNIST as drawings: dark on a transparent background.

    Args:
        folder: Cache of the package.
        part: ``train`` or ``t10k``.
        count: Number of clothes.

    Returns:
        RGBA of 8 bits, shape (count, 4, 2 SIZE, 2 SIZE), and places in the sorted LABELS, shape (count,).

    Raises:
        DataError: If the package is not installed and cannot be fetched.
    """
    data = _INSTALLED if _INSTALLED.is_dir() else fetch_package(folder)
    ink = _read(data / f"{part}-images-idx3-ubyte.gz", 16)[: count * 784].reshape(-1, 1, 28, 28).float() / 255
    labels = _read(data / f"{part}-labels-idx1-ubyte.gz", 8)[:count].long()
    ink = interpolate(ink, size=(2 * SIZE, 2 * SIZE), mode="bicubic", align_corners=False).clamp(0, 1)
    drawing = torch.cat([(1 - 0.9 * ink).expand(-1, 3, -1, -1), (4 * ink).clamp(max=1)], dim=1)
    place = torch.tensor([sorted(LABELS).index(name) for name in LABELS])
    return (255 * drawing).round().to(torch.uint8), place[labels]


def _read(file: Path, header: int) -> Tensor:
    return torch.from_numpy(np.frombuffer(gzip.decompress(file.read_bytes())[header:], dtype=np.uint8).copy())


def fetch_package(folder: Path) -> Path:
    """Download and unpack Debian's package, unless that was done before; nothing is installed.

    Args:
        folder: Folder in which it is kept.

    Returns:
        The folder of the data.

    Raises:
        DataError: If this is not a Debian system, or the package cannot be downloaded.
    """
    root = folder / PACKAGE
    if not root.is_dir():
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            raise DataError(f"Fashion-MNIST comes from Debian's package {PACKAGE}, and there is no `apt-get` here")
        scratch = folder / f".{PACKAGE}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        _run(["apt-get", "download", "--quiet", PACKAGE], scratch)
        _run(["dpkg", "-x", next(scratch.glob("*.deb")).name, "."], scratch)
        scratch.rename(root)
    return root / _INSTALLED.relative_to("/")


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError(f"{PACKAGE}: `{' '.join(command[:2])}` failed ({reason}); try `apt-get update`")


def noise(pictures: Tensor, generator: Generator) -> Tensor:
    """Add noise of standard deviation 0.3."""
    return pictures + 0.3 * torch.randn(pictures.shape, generator=generator)


def blur(pictures: Tensor, _: Generator) -> Tensor:
    """Average over 5 x 5 pixels, twice."""
    for _turn in range(2):
        pictures = avg_pool2d(pictures, 5, stride=1, padding=2, count_include_pad=False)
    return pictures


def contrast(pictures: Tensor, _: Generator) -> Tensor:
    """Keep a fifth of the contrast."""
    return 0.5 + 0.2 * (pictures - 0.5)


def inversion(pictures: Tensor, _: Generator) -> Tensor:
    """Invert to light on dark."""
    return 1 - pictures


def rotation(pictures: Tensor, generator: Generator) -> Tensor:
    """Rotate by 30 to 60 degrees in either direction."""
    count = len(pictures)
    side = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    angle = side * (30 + 30 * torch.rand(count, generator=generator)) * (math.pi / 180)
    rows = [torch.stack([angle.cos(), -angle.sin()], dim=1), torch.stack([angle.sin(), angle.cos()], dim=1)]
    matrix = torch.cat([torch.stack(rows, dim=1), torch.zeros(count, 2, 1)], dim=2)
    grid = affine_grid(matrix, list(pictures.shape), align_corners=False)
    return grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def elastic(pictures: Tensor, generator: Generator) -> Tensor:
    """Distort smoothly in random directions, by about two pixels."""
    count = len(pictures)
    coarse = torch.randn(count, 2, 6, 6, generator=generator) * (4 / SIZE)
    pull = interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    still = affine_grid(torch.eye(2, 3).expand(count, 2, 3), list(pictures.shape), align_corners=False)
    return grid_sample(pictures, still + pull, padding_mode="border", align_corners=False)


CORRUPTIONS = (noise, blur, contrast, inversion, rotation, elastic)
