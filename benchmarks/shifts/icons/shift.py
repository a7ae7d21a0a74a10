"""The shift between icon sets: learn some sets with their captions, fine-tune on the captions of
another, and find icons of sets that no model was trained on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch

from benchmarks.shifts.experiment import About, TrainedPair, locked, names_of
from benchmarks.shifts.icons.drawings import Icons, as_rgba, load_icons
from benchmarks.shifts.icons.training import finetune, pretrain
from benchmarks.shifts.pictures import PLAIN, photographed
from benchmarks.shifts.training import Pretraining, Regime
from clipmerge.images.digits import as_images

PRETRAINED = ("tabler", "tabler-filled", "material")
#: Pretraining sees every second icon of this style; the others are a shift.
HALF_SEEN = "material-rounded"
UNSEEN = ("lucide", "bootstrap", "bootstrap-fill")
FINETUNED = "phosphor-fill"
_CALIBRATION_SEED, _TEST_SEED, _OOD_SEED = 11, 12, 20
PRETRAINING = Pretraining(steps=600, batch=96, width=96, vision_layers=4, text_layers=1)
REGIMES = {
    "mild": Regime(steps=120, rate=3e-4, batch=96),
    "aggressive": Regime(steps=200, rate=2e-3, weight_decay=0.0, batch=96),
}
#: All start from one zero-shot model; seed 0 is for tuning.
SEEDS = dict.fromkeys(REGIMES, (0, 1))
ABOUT = About(
    name="icons",
    module="benchmarks.shifts.icons",
    title="Icons with captions",
    note=Path(__file__).with_name("about.md"),
    pairs=names_of(SEEDS),
    models="CLIP of 1 million parameters",
    unseen=UNSEEN,
)


def make_pair(folder: Path, regime: str, seed: int) -> TrainedPair:
    """Write the pictures and train the models of one pair, except those that exist."""
    torch.set_num_threads(1)
    images = _make_images(folder)
    zeroshot = make_zeroshot(folder)
    how = REGIMES[regime]
    finetuned = folder / f"{regime}-{seed}-{_digest([zeroshot.name, asdict(how)])}"
    with locked(folder / f".{finetuned.name}.lock"):
        finetune(_icons(folder)[FINETUNED], how, seed, zeroshot, finetuned)
    ood = {name: images / "ood" / name for name in (HALF_SEEN, *UNSEEN)}
    places = (zeroshot, finetuned, images / "calibration", images / "test", ood)
    return TrainedPair(regime, seed, *places, tuning=seed == 0)


def make_zeroshot(folder: Path) -> Path:
    """Train the zero-shot model, unless it exists; return its checkpoint folder."""
    torch.set_num_threads(1)
    icons = _icons(folder)
    seen = [*(icons[name] for name in PRETRAINED), _half(icons[HALF_SEEN], 0)]
    told = [asdict(PRETRAINING), [style.captions for style in seen]]
    zeroshot = folder / f"zeroshot-{_digest(told)}"
    with locked(folder / f".{zeroshot.name}.lock"):
        pretrain(seen, PRETRAINING, zeroshot)
    return zeroshot


@cache
def _icons(folder: Path) -> dict[str, Icons]:
    """The icons by style, of what both the fine-tuning's and a pretraining's set draw."""
    icons = load_icons(folder)
    known = frozenset(name for style in PRETRAINED for name in icons[style].names)
    drawn = known.intersection(icons[FINETUNED].names)
    return {title: style.named(drawn) for title, style in icons.items()}


def _half(icons: Icons, start: int) -> Icons:
    return icons.chosen(range(start, len(icons.names), 2))


def _make_images(folder: Path) -> Path:
    """Write the pictures of every source with their captions, unless they exist."""
    icons = _icons(folder)
    sources = {"calibration": icons[FINETUNED], "test": icons[FINETUNED]}
    # that half of the icons which pretraining has not seen in this style
    sources[f"ood/{HALF_SEEN}"] = _half(icons[HALF_SEEN], 1)
    sources |= {f"ood/{name}": icons[name] for name in UNSEEN}
    names = sorted({name for source in sources.values() for name in source.names})
    number = {name: place for place, name in enumerate(names)}
    seeds = (_CALIBRATION_SEED, _TEST_SEED, *range(_OOD_SEED, _OOD_SEED + len(sources) - 2))
    images = folder / f"images-{_digest([[name, each.captions] for name, each in sources.items()])}"
    with locked(folder / f".{images.name}.lock"):
        for (title, source), seed in zip(sources.items(), seeds, strict=True):
            _write(images / title, source, number, seed)
    return images


def _write(folder: Path, icons: Icons, number: dict[str, int], seed: int) -> None:
    """Write one picture of each icon with its caption beside it, completely or not at all."""
    if folder.is_dir():
        return
    scratch = folder.with_name(f".{folder.name}")
    scratch.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    images = as_images(photographed(as_rgba(icons.cover), PLAIN, generator))
    for name, captions, image in zip(icons.names, icons.captions, images, strict=True):
        file = scratch / f"{number[name]:05d}-0.png"
        image.save(file)
        file.with_suffix(".txt").write_text(captions[0], encoding="utf-8")
    scratch.rename(folder)


def _digest(settings: object) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
