"""The pairs of targets with natural shifts: how each is made once and kept."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import open_clip
import torch

from benchmarks.shifts.experiment import TrainedPair, locked
from benchmarks.shifts.natural.pairs import is_tuning
from benchmarks.shifts.natural.targets import OWN, classes_of, load_target
from benchmarks.shifts.photos.backbone import TEMPLATE, as_input, load_model, resized
from benchmarks.shifts.photos.collection import Picture, alike_features, grouped, read_tar
from benchmarks.shifts.photos.finetuning import Regime, finetune
from benchmarks.shifts.photos.pairs import Spec
from benchmarks.shifts.photos.roles import Roles, sampled, write_role
from benchmarks.shifts.photos.testbed import REGIMES, weights_digest

_ALIKE = 0.93  # cosine of two pictures' features from which on they are near-copies
_IMAGENET = "imagenet"


@dataclass(frozen=True)
class Settings:
    """Everything that determines the models and roles, besides the pictures.

    Attributes:
        regimes: Fine-tuning.
        most: Pictures of a target, and of each of its shifts, that are read at all.
        test: Pictures of the target, and of each shift, that are tested.
        calibration: Pictures that recipes may use.
        size: Side of a picture.
        imagenet: Names of the classes of ImageNet's samples.
    """

    regimes: dict[str, Regime] = field(default_factory=lambda: REGIMES)
    most: int = 1000
    test: int = 200
    calibration: int = 300
    size: int = 112
    imagenet: tuple[str, ...] = tuple(open_clip.IMAGENET_CLASSNAMES)


@dataclass(frozen=True)
class Natural:
    """The pictures and models of one cache.

    Attributes:
        clones: Folder of the clones of the repositories.
        samples: Tar file of ImageNet's samples, one of each class in class order.
        zeroshot: The zero-shot model.
        cache: Folder of the models and of the pictures in their roles.
        settings: Settings.
    """

    clones: Path
    samples: Path
    zeroshot: Path
    cache: Path
    settings: Settings = field(default_factory=Settings)

    def make_pair(self, spec: Spec) -> TrainedPair:
        """Write the pictures and train the models of one pair, except those that exist."""
        torch.set_num_threads(1)
        how, size = self.settings.regimes[spec.regime], self.settings.size
        zeroshot = resized(self.zeroshot, size, self.cache / f"zeroshot-{size}")
        made = _digest(asdict(how), asdict(self.settings), weights_digest(zeroshot))
        finetuned = self.cache / f"{spec.name}-{made}"
        images = self.cache / f"pictures-{finetuned.name}"
        with locked(self.cache / f".{finetuned.name}.lock"):
            if not (finetuned.is_dir() and images.is_dir()):
                self._make(spec, how, zeroshot, finetuned, images)
        ood = {file.name.removeprefix("ood-"): file for file in sorted(images.glob("ood-*"))}
        return TrainedPair(
            spec.group,
            spec.seed,
            zeroshot,
            finetuned,
            images / "calibration",
            images / "test",
            ood,
            is_tuning(spec),
            target=spec.target,
        )

    def _make(self, spec: Spec, how: Regime, zeroshot: Path, finetuned: Path, images: Path) -> None:
        pictures = load_target(self.clones, spec.target, self.settings.size, self.settings.most)
        classes = classes_of(pictures)
        roles = deal(pictures, self._groups(pictures), spec.seed, self.settings)
        labels = torch.tensor([classes.index(pictures[at].label) for at in roles.finetuning])
        pixels = self._pixels(pictures, roles.finetuning)
        finetune(zeroshot, how, spec.seed, pixels, labels, classes, finetuned)
        scratch = images.with_name(f".{images.name}")
        write_role(scratch / "calibration", pictures, roles.calibration, classes, TEMPLATE)
        write_role(scratch / "test", pictures, roles.test, classes, TEMPLATE)
        for name, tested in roles.ood.items():
            write_role(scratch / f"ood-{name}", pictures, tested, classes, TEMPLATE)
        # their positions follow those of the target, because a position stands for a thing
        samples = self._samples()
        some = [len(pictures) + at for at in sampled(range(len(samples)), self.settings.test)]
        write_role(
            scratch / f"ood-{_IMAGENET}",
            [*pictures, *samples],
            some,
            self.settings.imagenet,
            TEMPLATE,
        )
        scratch.rename(images)

    def _samples(self) -> list[Picture]:
        read = [data for _, data in read_tar(self.samples)]
        names = self.settings.imagenet
        return [Picture(_IMAGENET, name, data) for name, data in zip(names, read, strict=True)]

    def _pixels(self, pictures: Sequence[Picture], chosen: Sequence[int]) -> torch.Tensor:
        return torch.stack([pictures[at].pixels(self.settings.size) for at in chosen])

    @torch.no_grad()
    def _groups(self, pictures: Sequence[Picture]) -> list[int]:
        """Group of near-copies of each picture of the target; each of a shift is its own."""
        own = [at for at, picture in enumerate(pictures) if picture.domain == OWN]
        model = load_model(self.zeroshot)
        features = torch.cat(
            [
                model.encode_image(as_input(self._pixels(pictures, own[start : start + 16])))
                for start in range(0, len(own), 16)
            ]
        )
        alike = alike_features(features, _ALIKE)
        return grouped(len(pictures), [(own[one], own[other]) for one, other in alike])


def deal(
    pictures: Sequence[Picture], groups: Sequence[int], seed: int, settings: Settings
) -> Roles:
    """Deal out a target; near-copies stay together, and seeds differ in fine-tuning and
    calibration."""
    own = [at for at, picture in enumerate(pictures) if picture.domain == OWN]
    members: dict[int, list[int]] = {}
    for at in own:
        members.setdefault(groups[at], []).append(at)
    order = sorted(members)
    random.Random(0).shuffle(order)
    test: list[int] = []
    while len(test) < min(settings.test, len(own) // 4):
        test += members[order.pop()]
    random.Random(100 + seed).shuffle(order)
    calibration: list[int] = []
    while len(calibration) < min(settings.calibration, len(own) // 3):
        calibration += members[order.pop()]
    finetuning = [at for group in order for at in members[group]]
    shifts = sorted({picture.domain for picture in pictures} - {OWN})
    ood = {
        name: sampled(
            [at for at, each in enumerate(pictures) if each.domain == name], settings.test
        )
        for name in shifts
    }
    return Roles(classes_of(list(pictures)), finetuning, sorted(calibration), sorted(test), ood)


def _digest(*settings: object) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
