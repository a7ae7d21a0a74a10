"""The emoji again, with every vendor in another role, with other classes, and with calibration
pictures already seen.

Fine-tuning learns a fixed set of pictures, and recipes are calibrated on some of these same
pictures, as happens if nobody has set images aside.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.shifts.emoji.glyphs import load_other_glyphs
from benchmarks.shifts.emoji.shift import CLASSES as CLASSES_OF_EMOJI
from benchmarks.shifts.experiment import SEEDS, About, Shift, Source, names_of
from benchmarks.shifts.training import Pretraining

PRETRAINED = ("twemoji", "fluent-3d")
#: Pretraining sees every second class of these, beginning at this place; the others are OOD.
HALF_SEEN = {"openmoji-black": 1, "fluent-contrast": 0}
UNSEEN = ("fluent-flat",)
FINETUNED = "openmoji"
#: All 213 classes that the other split leaves out, and some that it uses.
CLASSES = 400
_QUICK_CLASSES = 24  # as many classes as the other split's quick size has, but different ones
#: Number of pictures per drawing that fine-tuning learns, and number of them that recipes may use.
_STILLS, _CALIBRATION = 8, 2

#: Every seed has a zero-shot model of its own.
ZEROSHOT_SEEDS = {1: 1, 2: 2}
ABOUT = About(
    name="emoji_roles",
    module="benchmarks.shifts.emoji_roles",
    title="Emoji, the vendors in other roles",
    note=Path(__file__).with_name("about.md"),
    pairs=names_of(SEEDS),
    unseen=UNSEEN,
)


def emoji_roles(folder: Path, quick: bool = False) -> Shift:
    """Lay out the benchmark."""
    taken, classes = (_QUICK_CLASSES, _QUICK_CLASSES) if quick else (CLASSES_OF_EMOJI, CLASSES)
    names, glyphs = load_other_glyphs(folder, taken, classes)
    labels = torch.arange(len(names))
    seen = [(glyphs[vendor], labels) for vendor in PRETRAINED]
    seen += [(glyphs[vendor][start::2], labels[start::2]) for vendor, start in HALF_SEEN.items()]
    ood = {vendor: labels[1 - start :: 2] for vendor, start in HALF_SEEN.items()} | dict.fromkeys(
        UNSEEN, labels
    )
    pretraining = Source(
        torch.cat([pixels for pixels, _ in seen]), torch.cat([shown for _, shown in seen])
    )
    taught = {drawing.numpy().tobytes() for drawing in (*pretraining.pixels, *glyphs[FINETUNED])}
    ood = {vendor: _others(glyphs[vendor], kept, taught) for vendor, kept in ood.items()}
    return Shift(
        name=ABOUT.name,
        folders=names,
        pretraining=pretraining,
        finetuning=Source(glyphs[FINETUNED], labels),
        calibration=Source(glyphs[FINETUNED], labels, copies=_CALIBRATION),
        test=Source(glyphs[FINETUNED], labels, copies=2),
        ood={
            vendor: Source(glyphs[vendor][kept], kept, copies=2, things=kept)
            for vendor, kept in ood.items()
        },
        zeroshot=Pretraining(steps=2000, width=64, vision_layers=4),
        zeroshot_seeds=ZEROSHOT_SEEDS,
        stills=_STILLS,
    )


def _others(pixels: Tensor, labels: Tensor, taught: set[bytes]) -> Tensor:
    """Leave out drawings that training shows: for some buttons, a vendor's black drawing is also
    its coloured one."""
    return labels[[pixels[label].numpy().tobytes() not in taught for label in labels]]
