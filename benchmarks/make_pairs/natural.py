"""Targets with natural shifts, from clones of public repositories."""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from benchmarks.make_pairs.backbone import IMAGENET, TEMPLATE
from benchmarks.make_pairs.pair import Pair, Places, Roles, Spec, resized, sampled, write_pair
from benchmarks.make_pairs.photos import REGIMES
from benchmarks.make_pairs.pictures import (
    Picture,
    alike_features,
    by_group,
    encoded,
    grouped,
    of_domains,
    read_tar,
    taken,
)
from benchmarks.models import load
from clipmerge.errors import DataError

#: Domain of the pictures like those of fine-tuning; every other domain is a shift.
_OWN = "own"
_SIZE, _MOST, _TEST, _VAL = 112, 1000, 200, 300
_ALIKE = 0.93  # cosine of two pictures' features from which on they are near-copies


@dataclass(frozen=True)
class File:
    """One picture's file.

    Attributes:
        domain: `_OWN`, or the name of a shift.
        label: Class, as it stands in prompts.
        path: The file.
    """

    domain: str
    label: str
    path: Path


def make_pair(spec: Spec, places: Places) -> Pair:
    """Make one pair, each part once."""
    given = places.zeroshots.get("lite0", places.cache / "zeroshot-lite0")
    if not given.is_dir():
        raise DataError(f"{given}: make a pair of real pictures first, or name --zeroshot")
    zeroshot = resized(given, _SIZE, places.cache / f"zeroshot-lite0-{_SIZE}")
    pictures = _load(places.clones or Path(), spec.target)
    groups = _groups(pictures, given)
    roles = deal(pictures, groups, spec.seed)
    samples = []
    tar = read_tar((places.pictures or Path()) / "imagenet-samples.tar")
    for name, (_, data) in zip(IMAGENET, tar, strict=True):
        samples.append(Picture("imagenet", name, data))
    some = sampled(range(len(samples)), _TEST)
    roles.positions["ood-imagenet"] = [len(pictures) + at for at in some]
    roles.other_classes["ood-imagenet"] = IMAGENET
    pictures += samples
    return write_pair(spec, places.cache, zeroshot, TEMPLATE, pictures, roles)


def _load(clones: Path, target: str) -> list[Picture]:
    """A sample of each domain of a target, scaled down."""
    files: dict[str, list[File]] = defaultdict(list)
    for file in _READERS[target](clones):
        files[file.domain].append(file)
    if not files:
        raise DataError(f"{clones}: no pictures of {target}; benchmarks/README.md names the clones")
    chosen = []
    for domain in sorted(files):
        ours = files[domain]
        ours.sort(key=lambda file: str(file.path.relative_to(clones)))
        random.Random(0).shuffle(ours)
        chosen += ours[:_MOST]
    return [Picture(file.domain, file.label, _scaled(file.path)) for file in chosen]


def _scaled(path: Path) -> bytes:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = min(1.0, _SIZE / min(image.size))
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BOX)
    return encoded(image, "jpeg")


@torch.no_grad()
def _groups(pictures: Sequence[Picture], zeroshot: Path) -> list[int]:
    """Groups of near-copies among the pictures of the target; each of a shift is its own."""
    own = of_domains(pictures)[_OWN]
    model = replace(load(zeroshot), size=_SIZE)
    images = [pictures[at].image() for at in own]
    features = []
    for piece in model.input(images).split(16):
        on_device = piece.to(model.scale.device)
        seen = model.network.encode_image(on_device)
        features.append(seen.cpu())
    alike = alike_features(torch.cat(features), _ALIKE)
    pairs = [(own[one], own[other]) for one, other in alike]
    return grouped(len(pictures), pairs)


def deal(pictures: Sequence[Picture], groups: Sequence[int], seed: int) -> Roles:
    """Deal out a target; near-copies stay together, and seeds differ in train and val."""
    of_domain = of_domains(pictures)
    own = of_domain.pop(_OWN)
    members = by_group(own, groups)
    order = sorted(members)
    random.Random(0).shuffle(order)
    test = taken(members, order, min(_TEST, len(own) // 4))
    random.Random(100 + seed).shuffle(order)
    val = taken(members, order, min(_VAL, len(own) // 3))
    train = [at for group in order for at in members[group]]
    positions = {"train": train, "val": sorted(val), "test": sorted(test)}
    for name, ours in of_domain.items():
        positions[f"ood-{name}"] = sampled(ours, _TEST)
    classes = {pictures[at].label for at in own}
    return Roles(tuple(sorted(classes)), positions, group=groups)


_LAND = {
    "aGrass": "grassland",
    "bField": "farm field",
    "cIndustry": "industrial area",
    "dRiverLake": "river or lake",
    "eForest": "forest",
    "fResident": "residential area",
    "gParking": "parking lot",
}
_GREY = {
    "coast": "sea",
    "forest": "forest",
    "mountain": "mountain",
    "street": "street",
    "tallbuilding": "buildings",
}
#: RSSCN7 has a hundred pictures of each class at each of four scales, the nearest first.
_NEAR, _MIDDLE = 200, 300
_EVERY_FRAME = 40  # of a turning fruit


def _aerial(clones: Path) -> Iterator[File]:
    """Land from near above; shifts are the same land from further away."""
    for folder, label in _LAND.items():
        for path in (clones / "RSSCN7" / folder).glob("*.jpg"):
            number = int(path.stem[1:])
            domain = _OWN if number <= _NEAR else "farther" if number <= _MIDDLE else "farthest"
            yield File(domain, label, path)


def _groceries(clones: Path) -> Iterator[File]:
    """Photographs in shops; shifts are the shops' product pictures, and fruit in a studio."""
    folder = clones / "GroceryStoreDataset" / "dataset"
    if not folder.is_dir():
        return
    with (folder / "classes.csv").open(encoding="utf-8") as opened:
        kinds = list(csv.reader(opened))[1:]
    names = {}
    for _, kind, name, *_ in kinds:
        names[kind] = name.lower().replace("-", " ")
    for listed in ("train", "val", "test"):
        for line in (folder / f"{listed}.txt").read_text(encoding="utf-8").splitlines():
            path, kind, _ = (word.strip() for word in line.split(","))
            yield File(_OWN, names[kind], folder / path)
    for row in kinds:
        yield File("product", names[row[1]], folder / row[4].lstrip("/"))
    for fruit in ("Apple", "Tomato"):
        studio = clones / "fruits-360-3-body-problem"
        for kind in sorted(studio.glob(f"*/{fruit}/*")):
            for path in sorted(kind.iterdir())[::_EVERY_FRAME]:
                yield File("studio", fruit.lower(), path)


def _waste(clones: Path) -> Iterator[File]:
    """Waste on a white board; the shift is waste anywhere."""
    yield from _of_folders(clones / "chs", {"dataset-resized": _OWN})
    yield from _of_folders(clones, {"Smart-Waste-Management-System": "elsewhere"})


def _office(clones: Path) -> Iterator[File]:
    """Things on a catalogue's pages; shifts are photographs of all kinds, and of two cameras."""
    folder = clones / "OfficeCaltechDomainAdaptation" / "images"
    names = {"amazon": _OWN, "caltech10": "photographs", "webcam": "webcam", "dslr": "camera"}
    yield from _of_folders(folder, names)


def _cartoon(clones: Path) -> Iterator[File]:
    """Seven things in cartoons; shifts are photographs, paintings and sketches of them."""
    names = {"cartoon": _OWN, "photo": "photo", "art_painting": "art", "sketch": "sketch"}
    yield from _of_folders(clones / "Homework3-PACS" / "PACS", names)


def _scenes(clones: Path) -> Iterator[File]:
    """Scenes in colour; the shift is the same kinds of scenes in grey, by other people."""
    yield from _of_folders(clones / "Intel-Image-Classifier", {"test": _OWN})
    folder = clones / "Landscape-Image-Classification" / "data" / "test"
    for name, label in _GREY.items():
        for path in (folder / name).glob("*.jpg"):
            yield File("grey", label, path)


def _of_folders(folder: Path, domains: Mapping[str, str]) -> Iterator[File]:
    """Pictures in folders of domains and, in these, of classes."""
    for name, domain in domains.items():
        for path in (folder / name).glob("*/*.[jp]*g"):
            label = path.parent.name.replace("_", " ").lower()
            yield File(domain, label, path)


_READERS: dict[str, Callable[[Path], Iterator[File]]] = {
    "aerial": _aerial,
    "groceries": _groceries,
    "office": _office,
    "cartoon": _cartoon,
    "waste": _waste,
    "scenes": _scenes,
}
#: These were looked at before images were split into those that choose and those that judge, and
#: were a reason for it. Office and cartoons were first looked at when all was settled.
_TUNED = ("aggressive-aerial-0", "aggressive-groceries-0")
PAIRS = tuple(
    Spec(name := f"{how}-{target}-0", target, "lite0", REGIMES[how], 0, name in _TUNED)
    for target in _READERS
    for how in ("aggressive", "mild")
)
