"""The pairs of real pictures: which there are, and how each is made once and kept."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import open_clip
import torch
from torch import Tensor

from benchmarks.shifts.experiment import TrainedPair, locked
from benchmarks.shifts.photos.backbone import (
    LITE0,
    LITE2,
    TEMPLATE,
    Backbone,
    Distillation,
    features_of,
    make_zeroshot,
    resized,
)
from benchmarks.shifts.photos.collection import (
    SIZE,
    TARS,
    Picture,
    alike_features,
    alike_pixels,
    grouped,
    load_collection,
)
from benchmarks.shifts.photos.finetuning import Regime, finetune
from benchmarks.shifts.photos.pairs import Spec
from benchmarks.shifts.photos.roles import Dealer, Roles, write_role

_LOG = logging.getLogger("benchmarks")
REGIMES = {
    "aggressive": Regime(1e-3, 5),
    "mild": Regime(2e-4, 2),
    "both-towers": Regime(1e-3, 5, text=True),
}
#: CIFAR-10 has more pictures, so it sees each less often.
CIFAR10_REGIMES = {**REGIMES, "aggressive": Regime(5e-4, 1.5)}
# A pair of pictures is alike if its features are, or if its features and its pixels nearly are;
# CIFAR-10's are too small for features.
_ALIKE, _NEARLY_ALIKE, _ALIKE_CIFAR10 = 0.93, 0.90, 0.95
#: ImageNet's names; two occur twice, and a model can only predict the first of them.
IMAGENET = tuple(open_clip.IMAGENET_CLASSNAMES)


@dataclass(frozen=True)
class Settings:
    """Everything that determines the models, besides the pictures.

    Attributes:
        backbones: Backbones by name.
        distillation: Settings of our own zero-shot models.
        regimes: Fine-tuning on PACS.
        cifar10_regimes: Fine-tuning on CIFAR-10.
        size: Side of a picture.
        imagenet: Names of the classes of ImageNet's samples.
        tested: Test pictures of one source; 0 for all.
    """

    backbones: dict[str, Backbone] = field(
        default_factory=lambda: {each.name: each for each in (LITE0, LITE2)}
    )
    distillation: Distillation = field(default_factory=Distillation)
    regimes: dict[str, Regime] = field(default_factory=lambda: REGIMES)
    cifar10_regimes: dict[str, Regime] = field(default_factory=lambda: CIFAR10_REGIMES)
    size: int = SIZE
    imagenet: tuple[str, ...] = IMAGENET
    tested: int = 0


@dataclass(frozen=True)
class Photos:
    """The pictures and models of one cache.

    Attributes:
        pictures_in: Folder of the tar files.
        cache: Folder of the models and of the pictures in their roles; other settings have other
            folders in it.
        zeroshot: Ready zero-shot models by name of their backbone; the others are taught here.
        settings: Settings.
    """

    pictures_in: Path
    cache: Path
    zeroshot: dict[str, Path] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)

    @cached_property
    def pictures(self) -> list[Picture]:
        """Every picture."""
        return load_collection(self.pictures_in, self.settings.imagenet)

    @cached_property
    def dealer(self) -> Dealer:
        """Deals out roles; near-copies are looked for once."""
        file = self.cache / f"groups-{self._digest}.json"
        with locked(self.cache / f".{file.name}.lock"):
            if not file.is_file():
                _LOG.info("looking for near-copies among %d pictures", len(self.pictures))
                file.write_text(json.dumps(self._groups()), encoding="utf-8")
        return Dealer(self.pictures, json.loads(file.read_text(encoding="utf-8")))

    @cached_property
    def _digest(self) -> str:
        hashed = hashlib.sha256()
        for name in TARS.values():
            hashed.update((self.pictures_in / name).read_bytes())
        return hashed.hexdigest()[:8]

    def _groups(self) -> list[int]:
        small = [
            at for at, picture in enumerate(self.pictures) if picture.domain.startswith("cifar10")
        ]
        large = [
            at
            for at, picture in enumerate(self.pictures)
            if not picture.domain.startswith("cifar10")
        ]
        features = alike_features(
            self._features(next(iter(self.settings.backbones.values())), large), _NEARLY_ALIKE
        )
        pixels = alike_pixels([self.pictures[at] for at in large], _NEARLY_ALIKE)
        pairs = [(large[one], large[other]) for (one, other), cosine in features.items()
                 if cosine > _ALIKE or (one, other) in pixels]  # fmt: skip
        copies = alike_pixels([self.pictures[at] for at in small], _ALIKE_CIFAR10)
        return grouped(
            len(self.pictures), [*pairs, *((small[one], small[other]) for one, other in copies)]
        )

    def _features(self, backbone: Backbone, chosen: Sequence[int]) -> Tensor:
        return features_of(backbone.classifier(), self._batches(chosen))

    def _batches(self, chosen: Sequence[int], count: int = 16) -> Iterator[Tensor]:
        for start in range(0, len(chosen), count):
            yield self._pixels(chosen[start : start + count])

    def _pixels(self, chosen: Sequence[int]) -> Tensor:
        return torch.stack([self.pictures[at].pixels(self.settings.size) for at in chosen])

    def make_zeroshot(self, name: str) -> Path:
        """Folder of the zero-shot model with this backbone, taught here unless it is given or
        exists."""
        size = self.settings.size
        if name in self.zeroshot:
            return resized(self.zeroshot[name], size, self.cache / f"zeroshot-{name}-{size}")
        backbone, how = self.settings.backbones[name], self.settings.distillation
        folder = (
            self.cache / f"zeroshot-{name}-{_digest(asdict(how), self.settings.size, self._digest)}"
        )
        with locked(self.cache / f".{folder.name}.lock"):
            if not folder.is_dir():
                seen = self.dealer.unlabelled()
                _LOG.info("%s: teaching names by %d pictures", folder.name, len(seen))
                features = self._features(backbone, seen)
                make_zeroshot(
                    backbone, features, self.settings.imagenet, how, folder, self.settings.size
                )
        return folder

    def make_pair(self, spec: Spec) -> TrainedPair:
        """Write the pictures and train the models of one pair, except those that exist."""
        torch.set_num_threads(1)
        zeroshot = self.make_zeroshot(spec.backbone)
        roles = self.dealer.deal(spec.target, spec.seed)
        if self.settings.tested:
            roles = roles.tested_on(self.settings.tested)
        regimes = (
            self.settings.cifar10_regimes if spec.target == "cifar10" else self.settings.regimes
        )
        how = regimes[spec.regime]
        told = _digest(
            asdict(how), zeroshot.name, weights_digest(zeroshot), self._digest, roles.finetuning
        )
        finetuned = self.cache / f"{spec.name}-{told}"
        with locked(self.cache / f".{finetuned.name}.lock"):
            if not finetuned.is_dir():
                number = {name: label for label, name in enumerate(roles.classes)}
                labels = torch.tensor([number[self.pictures[at].label] for at in roles.finetuning])
                pixels = self._pixels(roles.finetuning)
                finetune(zeroshot, how, spec.seed, pixels, labels, roles.classes, finetuned)
        images = self._write(spec, roles)
        ood = {name: images / f"ood-{name}" for name in roles.ood}
        return TrainedPair(
            spec.group,
            spec.seed,
            zeroshot,
            finetuned,
            images / "calibration",
            images / "test",
            ood,
            spec.tuning,
            target=spec.target,
            things=len(self.pictures),
        )

    def _write(self, spec: Spec, roles: Roles) -> Path:
        """The pictures of one pair in their roles; pairs of one target and seed share them."""
        chosen = {"calibration": roles.calibration, "test": roles.test}
        chosen |= {f"ood-{name}": tested for name, tested in roles.ood.items()}
        folder = (
            self.cache
            / f"pictures-{spec.target}-{spec.seed}-{_digest(chosen, TEMPLATE, self._digest)}"
        )
        with locked(self.cache / f".{folder.name}.lock"):
            for name, positions in chosen.items():
                classes = self.settings.imagenet if name == "ood-imagenet" else roles.classes
                write_role(folder / name, self.pictures, positions, classes, TEMPLATE)
        return folder


def weights_digest(folder: Path) -> str:
    """Hash of a model's weights."""
    return hashlib.sha256((folder / "open_clip_model.safetensors").read_bytes()).hexdigest()[:8]


def _digest(*settings: object) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
