"""The pictures of each target and of its shifts, from clones of public repositories."""

from __future__ import annotations

import csv
import io
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.shifts.photos.collection import Picture
from clipmerge.errors import DataError

#: Names of the clones; benchmarks/README.md has their addresses and licences.
GROCERIES, FRUITS = "GroceryStoreDataset", "fruits-360-3-body-problem"
AERIAL, SIGNS = "RSSCN7", "traffic-sign-recognition"
#: Domain of the pictures like those of fine-tuning; every other domain is a shift.
OWN = "own"
_AERIAL = {
    "aGrass": "grassland",
    "bField": "farm field",
    "cIndustry": "industrial area",
    "dRiverLake": "river or lake",
    "eForest": "forest",
    "fResident": "residential area",
    "gParking": "parking lot",
}
#: RSSCN7 has a hundred pictures of each class at each of four scales, the nearest first.
_NEAR, _MIDDLE = 200, 300
_EVERY = 40  # of the frames of a turning fruit
_EVERY_SIGN = 8  # of the test signs, of which many show the same post
#: Mean brightness of 255 below which a sign is dark, and above which it is not.
_DARK, _BRIGHT = 45, 65
_FRAME = 15  # of the thirty of a drive past a sign
_SIGNS = (
    *(f"speed limit {limit}" for limit in (20, 30, 50, 60, 70, 80)),
    "end of speed limit 80",
    "speed limit 100",
    "speed limit 120",
    "no overtaking",
    "no overtaking for trucks",
    "right of way at the next crossing",
    "priority road",
    "yield",
    "stop",
    "no vehicles",
    "no trucks",
    "no entry",
    "danger",
    "bend to the left",
    "bend to the right",
    "double bend",
    "bumpy road",
    "slippery road",
    "road narrows",
    "road works",
    "traffic lights",
    "pedestrians",
    "children",
    "bicycles",
    "snow",
    "wild animals",
    "end of all limits",
    "turn right",
    "turn left",
    "straight ahead",
    "straight or right",
    "straight or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no overtaking",
    "end of no overtaking for trucks",
)


@dataclass(frozen=True)
class File:
    """One picture's file.

    Attributes:
        domain: `OWN`, or the name of a shift.
        label: Class, as it stands in prompts.
        path: The file.
    """

    domain: str
    label: str
    path: Path


def load_target(clones: Path, target: str, size: int, most: int) -> list[Picture]:
    """Read the pictures of a target: a sample of each domain, scaled down.

    Args:
        clones: Folder of the clones.
        target: Key of `_READERS`.
        size: Shorter side to which larger pictures are scaled.
        most: Pictures of one domain.
    """
    files: dict[str, list[File]] = defaultdict(list)
    for file in _READERS[target](clones):
        files[file.domain].append(file)
    if not files:
        raise DataError(
            f"{clones}: has no pictures of {target}; benchmarks/README.md says which repositories"
            " they come from"
        )
    chosen = []
    for domain in sorted(files):
        ours = sorted(files[domain], key=lambda file: str(file.path.relative_to(clones)))
        random.Random(0).shuffle(ours)
        chosen += ours[:most]
    return [Picture(file.domain, file.label, _scaled(file.path, size)) for file in chosen]


def classes_of(pictures: list[Picture]) -> tuple[str, ...]:
    """Class names of a target, sorted."""
    return tuple(sorted({picture.label for picture in pictures if picture.domain == OWN}))


def _scaled(path: Path, size: int) -> bytes:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = min(1.0, size / min(image.size))
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, "jpeg", quality=95)
    return file.getvalue()


def _groceries(clones: Path) -> Iterator[File]:
    """Photographs in shops; shifts are the shops' product pictures, and fruit in a studio."""
    folder = clones / GROCERIES / "dataset"
    if not folder.is_dir():
        return
    with (folder / "classes.csv").open(encoding="utf-8") as opened:
        kinds = list(csv.reader(opened))[1:]
    names = {row[1]: row[2].lower().replace("-", " ") for row in kinds}
    for listed in ("train", "val", "test"):
        for line in (folder / f"{listed}.txt").read_text(encoding="utf-8").splitlines():
            path, kind, _ = (word.strip() for word in line.split(","))
            yield File(OWN, names[kind], folder / path)
    for row in kinds:
        yield File("product", names[row[1]], folder / row[4].lstrip("/"))
    for fruit in ("Apple", "Tomato"):
        for kind_folder in sorted((clones / FRUITS).glob(f"*/{fruit}/*")):
            for path in sorted(kind_folder.iterdir())[::_EVERY]:
                yield File("studio", fruit.lower(), path)


def _aerial(clones: Path) -> Iterator[File]:
    """Land from near above; shifts are the same land from further away."""
    for folder, label in _AERIAL.items():
        for path in (clones / AERIAL / folder).glob("*.jpg"):
            number = int(path.stem[1:])
            domain = OWN if number <= _NEAR else "farther" if number <= _MIDDLE else "farthest"
            yield File(domain, label, path)


def _signs(clones: Path) -> Iterator[File]:
    """Signs by day; the shift is signs in the dark."""
    folder = clones / SIGNS / "GTSRB"
    for path in folder.glob(f"Final_Training/Images/*/*_{_FRAME:05d}.ppm"):
        if _brightness(path) > _BRIGHT:
            yield File(OWN, _SIGNS[int(path.parent.name)], path)
    listed = folder / "Final_Test" / "GT-final_test.csv"
    if not listed.is_file():
        return
    with listed.open(encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened, delimiter=";"))
    for row in rows[::_EVERY_SIGN]:
        path = folder / "Final_Test" / "Images" / row["Filename"]
        brightness = _brightness(path)
        if not _DARK <= brightness <= _BRIGHT:
            domain = OWN if brightness > _BRIGHT else "dark"
            yield File(domain, _SIGNS[int(row["ClassId"])], path)


def _brightness(path: Path) -> float:
    with Image.open(path) as opened:
        return float(np.asarray(opened.convert("L")).mean())


_READERS = {"groceries": _groceries, "aerial": _aerial, "signs": _signs}
