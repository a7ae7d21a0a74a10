"""One distribution shift: its pictures, its zero-shot models and its fine-tuned models, each made
once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.shifts.pictures import Change, Pictures, taken_images, write_pictures
from benchmarks.shifts.training import Drawings, Pretraining, Regime, Stills, finetune, pretrain
from clipmerge.errors import UsageError

_CALIBRATION_SEED, _TEST_SEED, _OOD_SEED = 11, 12, 20
#: Two ways of fine-tuning that every benchmark has, their seeds, and the pairs on which recipes may
#: be tuned.
REGIMES = {
    "mild": Regime(steps=500, rate=2e-4),
    "aggressive": Regime(steps=500, rate=3e-3, weight_decay=0.0),
}
SEEDS = dict.fromkeys(REGIMES, (0, 1, 2))
TUNING = frozenset({("aggressive", 0), ("mild", 0)})


@dataclass(frozen=True)
class About:
    """The description of one benchmark, whether or not it has been run.

    Attributes:
        name: Name of its folder among the results and in the cache.
        module: Module that runs it.
        title: Title of its section on the results page.
        note: File with the paragraphs that begin this section.
        pairs: Names of the pairs that are made if none is named.
        models: The models in a few words.
        unseen: OOD sources in a style that no model was trained on, unlike the styles of the other
            sources.
    """

    name: str
    module: str
    title: str
    note: Path
    pairs: tuple[str, ...]
    models: str = "CLIP of 2 million parameters"
    unseen: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command that runs it."""
        return f"python -m {self.module}"


@dataclass(frozen=True)
class Source:
    """Drawings of one style, from which one source of pictures is made.

    Attributes:
        pixels: RGBA of 8 bits, shape (N, 4, 2 SIZE, 2 SIZE).
        labels: Class of each, shape (N,).
        copies: Pictures of each drawing.
        change: Change made to the pictures, if any.
        things: Index of the thing that each drawing shows, shape (N,), each thing equally often:
            intervals resample things, in the same way over all sources; by default every drawing
            shows a different thing.
    """

    pixels: Tensor
    labels: Tensor
    copies: int = 1
    change: Change | None = None
    things: Tensor | None = None

    def taken(self, seed: int) -> Pictures:
        """The pictures to write."""
        things = torch.arange(len(self.labels)) if self.things is None else self.things
        return Pictures(self.pixels, self.labels, self.copies, seed, self.change, things)

    @property
    def digest(self) -> str:
        """Hash of the drawings."""
        return hashlib.sha256(
            self.pixels.numpy().tobytes() + self.labels.numpy().tobytes()
        ).hexdigest()


@dataclass(frozen=True)
class Shift:
    """Everything that determines one benchmark.

    Attributes:
        name: Name of its folder and its results.
        folders: Class folders, sorted.
        pretraining: Drawings that the zero-shot model sees.
        finetuning: Drawings that the fine-tuned models see.
        calibration: ID pictures that recipes may use.
        test: ID pictures that only evaluation uses.
        ood: Pictures unlike those of fine-tuning, by name; no model is trained on any of them.
        zeroshot: Settings for training a zero-shot model.
        regimes: Settings for training a fine-tuned model, by name.
        seeds: Seeds of each regime.
        further: Further seeds of regimes, whose pairs are made only if they are named.
        zeroshot_seeds: Seed of the zero-shot model by the fine-tuned model's seed, if it is not 0.
        tuning: Regime and seed of the pairs on which recipes may be tuned; all others are held out.
        stills: Number of pictures per drawing that fine-tuning sees repeatedly; if calibration has
            the same drawings, its pictures are the first of these. 0 for new pictures in every
            step.
    """

    name: str
    folders: tuple[str, ...]
    pretraining: Source
    finetuning: Source
    calibration: Source
    test: Source
    ood: Mapping[str, Source]
    zeroshot: Pretraining
    regimes: Mapping[str, Regime] = field(default_factory=lambda: REGIMES)
    seeds: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: SEEDS)
    further: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    zeroshot_seeds: Mapping[int, int] = field(default_factory=dict)
    tuning: frozenset[tuple[str, int]] = TUNING
    stills: int = 0

    @property
    def classes(self) -> tuple[str, ...]:
        """Names as written in prompts."""
        return tuple(folder.replace("_", " ") for folder in self.folders)

    def pairs(self) -> list[tuple[str, int]]:
        """Regime and seed of every pair except the further ones, in the order of seeds."""
        return _pairs(self.seeds)

    def further_pairs(self) -> list[tuple[str, int]]:
        """Regime and seed of the further pairs, in the order of seeds."""
        return _pairs(self.further)

    def quick(self) -> Shift:
        """The same with few steps and one pair: tests that everything runs, not the results."""
        return replace(
            self,
            zeroshot=Pretraining(steps=8, batch=32, width=64, vision_layers=2),
            regimes={"aggressive": Regime(steps=6, rate=3e-3, batch=32)},
            seeds={"aggressive": (0,)},
            further={},
        )


def pair_name(regime: str, target: str, seed: int) -> str:
    """Regime, target if there are several, and seed in one word."""
    return "-".join(filter(None, (regime, target, str(seed))))


def names_of(seeds: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Names of the pairs with these seeds of each regime."""
    return tuple(pair_name(regime, "", seed) for regime, seed in _pairs(seeds))


def _pairs(seeds: Mapping[str, tuple[int, ...]]) -> list[tuple[str, int]]:
    runs = [(regime, seed) for regime, each in seeds.items() for seed in each]
    return sorted(runs, key=lambda run: run[1])


@dataclass(frozen=True)
class TrainedPair:
    """Paths of one pair and its pictures.

    Attributes:
        regime: Regime of fine-tuning; pairs of one regime are averaged.
        seed: Seed of fine-tuning.
        zeroshot: Checkpoint folder of theta_0.
        finetuned: Checkpoint folder of theta_1.
        calibration: ID pictures that recipes may use.
        test: ID pictures that only evaluation uses.
        ood: Folders by name.
        tuning: Whether recipes may be tuned on it.
        target: What it was fine-tuned on, in a benchmark with several targets.
        things: Number of things that all pairs of the benchmark show together, if no pair shows all
            of them.
    """

    regime: str
    seed: int
    zeroshot: Path
    finetuned: Path
    calibration: Path
    test: Path
    ood: dict[str, Path]
    tuning: bool = False
    target: str = ""
    things: int = 0

    @property
    def name(self) -> str:
        """Name of its file."""
        return pair_name(self.regime, self.target, self.seed)

    @property
    def made_of(self) -> list[str]:
        """Folders of the models and the pictures, whose names identify the settings used to make
        them."""
        return [self.zeroshot.name, self.finetuned.name, self.test.parent.name]


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Wait until no other process has locked this file, and lock it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def prepare(shift: Shift, folder: Path, regimes: Collection[str]) -> Iterator[TrainedPair]:
    """Make the pairs of some regimes, one after the other; each is yielded as soon as it is
    complete."""
    for name, seed in chosen_pairs(shift, regimes):
        yield make_pair(shift, folder, name, seed)


def chosen_pairs(shift: Shift, wanted: Collection[str]) -> list[tuple[str, int]]:
    """Regime and seed of the pairs that are wanted, in the order of seeds."""
    named = {
        f"{name}-{seed}": (name, seed) for name, seed in [*shift.pairs(), *shift.further_pairs()]
    }
    unknown = [name for name in wanted if name not in {*shift.seeds, *named}]
    if unknown:
        raise UsageError(
            f"{shift.name} has no regime '{unknown[0]}' (regimes: {', '.join(shift.seeds)})"
        )
    by_regime = {pair for pair in shift.pairs() if pair[0] in wanted}
    return [pair for name, pair in named.items() if pair in by_regime or name in wanted]


def make_pair(shift: Shift, folder: Path, regime: str, seed: int) -> TrainedPair:
    """Write the pictures and train the models of one pair, except those that exist."""
    images = make_images(shift, folder)
    zeroshot = make_zeroshot(shift, folder, shift.zeroshot_seeds.get(seed, 0))
    finetuned = _make_finetuned(shift, folder, regime, seed, zeroshot)
    ood = {name: images / "ood" / name for name in shift.ood}
    places = images / "calibration", images / "test", ood
    return TrainedPair(regime, seed, zeroshot, finetuned, *places, (regime, seed) in shift.tuning)


def _make_finetuned(shift: Shift, folder: Path, regime: str, seed: int, zeroshot: Path) -> Path:
    told = [zeroshot.name, asdict(shift.regimes[regime]), shift.finetuning.digest]
    told += [shift.stills] if shift.stills else []
    told += [shift.finetuning.change.__name__] if shift.finetuning.change else []
    finetuned = folder / f"{regime}-{seed}-{_digest(told)}"
    torch.set_num_threads(1)
    with locked(folder / f".{finetuned.name}.lock"):
        learned = _stills(shift) if shift.stills else _drawings(shift, shift.finetuning)
        finetune(learned, shift.regimes[regime], seed, zeroshot, finetuned)
    return finetuned


def make_zeroshot(shift: Shift, folder: Path, seed: int) -> Path:
    """Train a zero-shot model, unless it exists; return its checkpoint folder."""
    how = replace(shift.zeroshot, seed=seed)
    zeroshot = folder / f"zeroshot-{_digest([asdict(how), shift.pretraining.digest])}"
    torch.set_num_threads(1)
    with locked(folder / f".{zeroshot.name}.lock"):
        pretrain(_drawings(shift, shift.pretraining), how, zeroshot)
    return zeroshot


def make_images(shift: Shift, folder: Path) -> Path:
    """Write the pictures of every source, unless they exist; return the folder with one folder per
    source."""
    images = folder / f"images-{_digest([_digest_of_images(shift)])}"
    with locked(folder / f".{images.name}.lock"):
        for name, (source, seed) in _sources(shift).items():
            write_pictures(images / name, shift.folders, source.taken(seed))
    return images


def _drawings(shift: Shift, source: Source) -> Drawings:
    return Drawings(shift.classes, source.pixels, source.labels, source.change)


def _stills(shift: Shift) -> Stills:
    """The pictures that fine-tuning sees, with the rounding of writing and reading them."""
    taken = replace(shift.finetuning, copies=shift.stills).taken(_CALIBRATION_SEED)
    images = [np.asarray(image) for turn in taken_images(taken) for image in turn]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Stills(shift.classes, pixels, taken.labels.repeat(shift.stills))


def _sources(shift: Shift) -> dict[str, tuple[Source, int]]:
    """Drawings and seed by folder, for every source of pictures."""
    found = {
        "calibration": (shift.calibration, _CALIBRATION_SEED),
        "test": (shift.test, _TEST_SEED),
    }
    return found | {
        f"ood/{name}": (source, _OOD_SEED + place)
        for place, (name, source) in enumerate(shift.ood.items())
    }


def _digest_of_images(shift: Shift) -> list[object]:
    changes = {
        name: source.change and source.change.__name__
        for name, (source, _) in _sources(shift).items()
    }
    return [
        [name, source.digest, source.taken(0).things.tolist(), source.copies, seed, changes[name]]
        for name, (source, seed) in _sources(shift).items()
    ]


def _digest(settings: object) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
