"""The emoji shift: learn from two vendors, fine-tune on a third, be tested on styles that nobody trained on."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.emoji_shift.glyphs import load_glyphs
from benchmarks.shifts.experiment import Shift, Source
from benchmarks.shifts.training import Pretraining, Regime

PRETRAINED = ("openmoji", "openmoji-black", "fluent-flat", "fluent-contrast")
FINETUNED = "twemoji"
OOD = ("openmoji-black", "fluent-contrast", "fluent-3d")
CLASSES = 800
_QUICK_CLASSES = 24

REGIMES = {
    "mild": Regime(steps=500, rate=2e-4),
    "aggressive": Regime(steps=500, rate=3e-3, weight_decay=0.0),
    "frozen-text": Regime(steps=500, rate=1e-3, text=False),
    "long": Regime(steps=1200, rate=5e-4, weight_decay=0.3),
}
SEEDS = dict.fromkeys(REGIMES, (0, 1, 2))
TUNING = frozenset({("aggressive", 0), ("mild", 0), ("frozen-text", 0)})


def emoji_shift(folder: Path, quick: bool = False) -> Shift:
    """Lay out the benchmark.

    Args:
        folder: Cache of the packages and of the rendered glyphs.
        quick: Few classes, few steps and one pair: whether everything runs, not what comes out.

    Raises:
        DataError: If a package or a library is missing.
    """
    names, glyphs = load_glyphs(folder, _QUICK_CLASSES if quick else CLASSES)
    labels = torch.arange(len(names))
    seen = Source(torch.cat([glyphs[vendor] for vendor in PRETRAINED]), labels.repeat(len(PRETRAINED)))
    return Shift(
        name="emoji_shift",
        folders=names,
        pretraining=seen,
        finetuning=Source(glyphs[FINETUNED], labels),
        calibration=Source(glyphs[FINETUNED], labels, copies=2),
        test=Source(glyphs[FINETUNED], labels, copies=2),
        ood={vendor: Source(glyphs[vendor], labels) for vendor in OOD},
        zeroshot=Pretraining(steps=30, batch=64, width=64, vision_layers=2) if quick else Pretraining(),
        regimes={"aggressive": Regime(steps=20, rate=3e-3, batch=64)} if quick else REGIMES,
        seeds={"aggressive": (0,)} if quick else SEEDS,
        tuning=TUNING,
    )
