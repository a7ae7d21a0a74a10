"""Small emoji pairs, minutes each: fine-tuned in a third style, tested on three other styles, of
which the zero-shot model has seen two."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.shifts.emoji.glyphs import load_glyphs
from benchmarks.shifts.experiment import Shift, Source
from benchmarks.shifts.training import Pretraining, Regime

_CLASSES = 80
_SEEN = ("openmoji", "fluent-flat")
_TARGET = "fluent-3d"
_OTHERS = ("fluent-flat", "openmoji", "twemoji")
REGIMES = {
    "mild": Regime(steps=150, rate=2e-4, batch=64),
    "aggressive": Regime(steps=150, rate=3e-3, weight_decay=0.0, batch=64),
}


def small_emoji(folder: Path) -> Shift:
    """Lay out the pairs."""
    names, glyphs = load_glyphs(folder, 2 * _CLASSES)
    glyphs = {vendor: drawings[::2] for vendor, drawings in glyphs.items()}
    labels = torch.arange(_CLASSES)
    return Shift(
        name="small-third",
        folders=names[::2],
        pretraining=Source(
            torch.cat([glyphs[vendor] for vendor in _SEEN]), labels.repeat(len(_SEEN))
        ),
        finetuning=Source(glyphs[_TARGET], labels),
        calibration=Source(glyphs[_TARGET], labels, copies=6),
        test=Source(glyphs[_TARGET], labels, copies=4),
        ood={vendor: Source(glyphs[vendor], labels, copies=2) for vendor in _OTHERS},
        zeroshot=Pretraining(steps=600, batch=64, width=64, vision_layers=3, text_layers=1),
        regimes=REGIMES,
    )
