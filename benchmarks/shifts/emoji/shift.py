"""The emoji shift: learn from two vendors, fine-tune on a third, test on drawings that no model was
trained on.

As CLIP has seen sketches, but not the very sketches that it is tested on, the zero-shot model sees
line art and high contrast of every second class only, and is tested on those of the others.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.shifts import experiment
from benchmarks.shifts.emoji.glyphs import load_glyphs
from benchmarks.shifts.experiment import About, Shift, Source, names_of
from benchmarks.shifts.training import Pretraining, Regime

PRETRAINED = ("openmoji", "fluent-flat")
#: Pretraining sees every second class of these, beginning at this place; the others are OOD.
HALF_SEEN = {"openmoji-black": 0, "fluent-contrast": 1}
UNSEEN = ("fluent-3d",)
FINETUNED = "twemoji"
CLASSES = 800
_QUICK_CLASSES = 24

REGIMES = experiment.REGIMES | {
    "frozen-text": Regime(steps=500, rate=1e-3, text=False),
    "long": Regime(steps=800, rate=5e-4, weight_decay=0.3),
}
SEEDS = dict.fromkeys(REGIMES, (0, 1, 2))
#: Held-out pairs that run only when `--only` names them: seeds 3 and 4 were first trained when the
#: defaults of 0.1 had been chosen, seed 5 for the choices that came after, and seed 6 when those
#: had been made.
FURTHER = dict.fromkeys(REGIMES, (3, 4, 5, 6))
#: Held-out pairs, except for long-0, start from zero-shot models of their own.
ZEROSHOT_SEEDS = {1: 1, 2: 1, 3: 2, 4: 2, 5: 3, 6: 3}
TUNING = experiment.TUNING | {("frozen-text", 0)}
ABOUT = About(
    name="emoji_shift",
    module="benchmarks.shifts.emoji",
    title="Emoji of other vendors",
    note=Path(__file__).with_name("about.md"),
    pairs=names_of(SEEDS),
    unseen=UNSEEN,
)


def emoji_shift(folder: Path, quick: bool = False) -> Shift:
    """Lay out the benchmark."""
    names, glyphs = load_glyphs(folder, _QUICK_CLASSES if quick else CLASSES)
    labels = torch.arange(len(names))
    every = {vendor: Source(glyphs[vendor], labels) for vendor in (*PRETRAINED, *UNSEEN)}
    seen = [every[vendor] for vendor in PRETRAINED]
    seen += [
        Source(glyphs[vendor][start::2], labels[start::2]) for vendor, start in HALF_SEEN.items()
    ]
    ood = {vendor: _half(glyphs[vendor], labels, 1 - start) for vendor, start in HALF_SEEN.items()}
    return Shift(
        name=ABOUT.name,
        folders=names,
        pretraining=Source(
            torch.cat([each.pixels for each in seen]), torch.cat([each.labels for each in seen])
        ),
        finetuning=Source(glyphs[FINETUNED], labels),
        calibration=Source(glyphs[FINETUNED], labels, copies=2),
        test=Source(glyphs[FINETUNED], labels, copies=2),
        ood=ood | {vendor: every[vendor] for vendor in UNSEEN},
        zeroshot=Pretraining(),
        regimes=REGIMES,
        seeds=SEEDS,
        further=FURTHER,
        zeroshot_seeds=ZEROSHOT_SEEDS,
        tuning=TUNING,
    )


def _half(pixels: Tensor, labels: Tensor, start: int) -> Source:
    return Source(pixels[start::2], labels[start::2], things=labels[start::2])
