"""Targets with natural shifts, from clones of public repositories."""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.make_pairs.backbone import TEMPLATE
from benchmarks.make_pairs.broad import teach_shifts
from benchmarks.make_pairs.pair import Pair, Places, Roles, Spec, resized, sampled, write_pair
from benchmarks.make_pairs.photos import REGIMES
from benchmarks.make_pairs.pictures import (
    Picture,
    Source,
    alike_features,
    by_group,
    encoded,
    grouped,
    of_domains,
    taken,
)
from benchmarks.models import load
from clipmerge.errors import DataError

#: Domain of the pictures like those of fine-tuning; every other domain is a shift.
_OWN = "own"
_SIZE, _MOST, _TEST, _VAL, _TASK = 112, 1000, 200, 300, 60
_FEWEST_TAUGHT = 100  # labelled pictures of a shift, for it to be taught to a zero-shot model
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
    dealt = {target: _dealt(target, spec.seed, places, zeroshot) for target in _READERS}
    if spec.model == "broad":
        taught = places.cache / "zeroshot-broad"
        teach_shifts(zeroshot, _shift_sources(dealt), taught)
        zeroshot = taught
    pictures, roles = dealt.pop(spec.target)
    for target, (others, other_roles) in dealt.items():
        name = f"task-{target}"
        tested = sampled(other_roles.positions["test"], _TEST // 2)
        some = random.Random(5).sample(tested, min(_TASK, len(tested)))
        roles.positions[name] = list(range(len(pictures), len(pictures) + len(some)))
        roles.other_classes[name] = other_roles.classes
        pictures = [*pictures, *(others[at] for at in some)]
    return write_pair(spec, places.cache, zeroshot, TEMPLATE, pictures, roles)


def _dealt(target: str, seed: int, places: Places, zeroshot: Path) -> tuple[list[Picture], Roles]:
    """The pictures of a target and their roles; read and compared once."""
    file = places.cache / f"pictures-{target}.pt"
    if not file.is_file():
        pictures = _load(places.clones or Path(), target)
        groups = _groups(pictures, zeroshot)
        rows = [(each.domain, each.label, each.data) for each in pictures]
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"rows": rows, "groups": groups}, file)
    stored = torch.load(file, weights_only=True)  # noqa: TID251 (written above)
    pictures = [Picture(*row) for row in stored["rows"]]
    return pictures, deal(pictures, stored["groups"], seed)


def _shift_sources(dealt: Mapping[str, tuple[list[Picture], Roles]]) -> list[Source]:
    """The labelled pictures of every shift of every target that no test holds."""
    sources = []
    for pictures, roles in dealt.values():
        for name, chosen in roles.positions.items():
            if name.startswith("labels-") and len(chosen) >= _FEWEST_TAUGHT:
                ours = [pictures[at] for at in chosen]
                labels = [roles.classes.index(each.label) for each in ours]
                images = [each.image() for each in ours]
                things = np.arange(len(ours))
                sources.append(Source(images, torch.tensor(labels), things, roles.classes))
    return sources


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
    """Groups of near-copies among the pictures of each domain."""
    model = load(zeroshot)
    pairs = []
    for ours in of_domains(pictures).values():
        features = []
        for piece in model.input([pictures[at].image() for at in ours]).split(16):
            on_device = piece.to(model.scale.device)
            seen = model.network.encode_image(on_device)
            features.append(seen.cpu())
        alike = alike_features(torch.cat(features), _ALIKE)
        pairs += [(ours[one], ours[other]) for one, other in alike]
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
        tested = sampled(ours, min(_TEST, len(ours) * 2 // 3))
        positions[f"ood-{name}"] = tested
        seen = {groups[at] for at in tested}
        positions[f"labels-{name}"] = [at for at in ours if groups[at] not in seen]
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
#: Targets on whose pairs recipes may be tuned; the others are held out, whatever the regime.
_TUNED = ("aerial", "groceries", "office")
PAIRS = tuple(
    Spec(f"{prefix}{how}-{target}-0", target, model, REGIMES[how], 0, target in _TUNED)
    for prefix, model in (("", "lite0"), ("broad-", "broad"))
    for target in _READERS
    for how in ("aggressive", "mild")
)
