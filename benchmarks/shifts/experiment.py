"""One distribution shift: its pictures, its zero-shot model and its fine-tuned ones, each made once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.shifts.pictures import Change, Pictures, write_pictures
from benchmarks.shifts.training import Drawings, Pretraining, Regime, finetune, pretrain
from clipmerge.errors import UsageError

_OOD_SEED = 20


@dataclass(frozen=True)
class Source:
    """Drawings of one style that become one source of pictures.

    Attributes:
        pixels: RGBA of 8 bits, shape (N, 4, 2 SIZE, 2 SIZE).
        labels: Class of each, shape (N,).
        copies: Pictures of each drawing.
        change: What is done to the pictures, if anything.
    """

    pixels: Tensor
    labels: Tensor
    copies: int = 1
    change: Change | None = None

    @property
    def digest(self) -> str:
        """Hash of the drawings."""
        return hashlib.sha256(self.pixels.numpy().tobytes() + self.labels.numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Shift:
    """Everything that determines one benchmark.

    Attributes:
        name: Of its folder and its results.
        folders: Class folders, sorted.
        pretraining: Drawings that the zero-shot model sees.
        finetuning: Drawings that the fine-tuned models see.
        calibration: ID pictures that recipes may use.
        test: ID pictures that only evaluation uses.
        ood: Name to pictures unlike those of fine-tuning; none of them is trained on.
        zeroshot: How the zero-shot model is trained.
        regimes: Name to how a fine-tuned model is trained.
        seeds: Seeds of each regime.
        tuning: Regime and seed of the pairs on which recipes may be tuned; all others are held out.
    """

    name: str
    folders: tuple[str, ...]
    pretraining: Source
    finetuning: Source
    calibration: Source
    test: Source
    ood: Mapping[str, Source]
    zeroshot: Pretraining
    regimes: Mapping[str, Regime]
    seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tuning: frozenset[tuple[str, int]] = frozenset()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names as they stand in prompts."""
        return tuple(folder.replace("_", " ") for folder in self.folders)

    def pairs(self) -> Iterator[tuple[str, int]]:
        """Regime and seed of every pair, the first seeds first."""
        runs = [(seed, regime) for regime, seeds in self.seeds.items() for seed in seeds]
        yield from ((regime, seed) for seed, regime in sorted(runs, key=lambda run: run[0]))


@dataclass(frozen=True)
class TrainedPair:
    """Where one pair and its pictures are.

    Attributes:
        regime: Of fine-tuning.
        seed: Of fine-tuning.
        zeroshot: Checkpoint folder of theta_0.
        finetuned: Checkpoint folder of theta_1.
        calibration: ID pictures that recipes may use.
        test: ID pictures that only evaluation uses.
        ood: Name to folder.
        tuning: Whether recipes may be tuned on it.
    """

    regime: str
    seed: int
    zeroshot: Path
    finetuned: Path
    calibration: Path
    test: Path
    ood: dict[str, Path]
    tuning: bool = False

    @property
    def name(self) -> str:
        """Regime and seed."""
        return f"{self.regime}-{self.seed}"


def cache_folder(name: str) -> Path:
    """Give a benchmark's place in the user's cache: ``$XDG_CACHE_HOME`` or ``~/.cache``, then its name."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "clipmerge" / name


def prepare(shift: Shift, folder: Path, regimes: Collection[str]) -> Iterator[TrainedPair]:
    """Write the pictures and train the models, each unless it is there; a pair is yielded as soon as it is whole.

    Args:
        shift: What to make.
        folder: Cache; models and pictures of other settings have other folders in it.
        regimes: Which of them to make.

    Raises:
        UsageError: If there is no such regime.
    """
    unknown = [name for name in regimes if name not in shift.regimes]
    if unknown:
        raise UsageError(f"{shift.name} has no regime '{unknown[0]}' (regimes: {', '.join(shift.regimes)})")
    torch.set_num_threads(1)
    images = folder / f"images-{_digest([_digest_of_images(shift)])}"
    ood = _write_images(shift, images)
    told = [asdict(shift.zeroshot), shift.pretraining.digest]
    zeroshot = folder / f"zeroshot-{_digest(told)}"
    pretrain(Drawings(shift.classes, shift.pretraining.pixels, shift.pretraining.labels), shift.zeroshot, zeroshot)
    learned = Drawings(shift.classes, shift.finetuning.pixels, shift.finetuning.labels)
    for name, seed in ((name, seed) for name, seed in shift.pairs() if name in regimes):
        regime = shift.regimes[name]
        finetuned = folder / f"{name}-{seed}-{_digest([*told, asdict(regime), shift.finetuning.digest])}"
        finetune(learned, regime, seed, zeroshot, finetuned)
        yield TrainedPair(
            name, seed, zeroshot, finetuned, images / "calibration", images / "test", ood, (name, seed) in shift.tuning
        )


def _sources(shift: Shift) -> dict[str, tuple[Source, int]]:
    """Folder to drawings and seed, for every source of pictures."""
    found = {"calibration": (shift.calibration, 11), "test": (shift.test, 12)}
    return found | {
        f"ood/{name}": (source, _OOD_SEED + place) for place, (name, source) in enumerate(shift.ood.items())
    }


def _write_images(shift: Shift, folder: Path) -> dict[str, Path]:
    for name, (source, seed) in _sources(shift).items():
        pictures = Pictures(source.pixels, source.labels, source.copies, seed, source.change)
        write_pictures(folder / name, shift.folders, pictures)
    return {name: folder / "ood" / name for name in shift.ood}


def _digest_of_images(shift: Shift) -> list[object]:
    changes = {name: source.change and source.change.__name__ for name, (source, _) in _sources(shift).items()}
    return [
        [name, source.digest, source.copies, seed, changes[name]] for name, (source, seed) in _sources(shift).items()
    ]


def _digest(settings: object) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
