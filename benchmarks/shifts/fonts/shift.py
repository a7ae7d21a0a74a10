"""The fonts shift: learn characters in many typefaces, fine-tune on signs, test on other typefaces
in print.

Signs are clean sans serifs, most of them light on dark, of which pretraining sees few. No typeface
has two roles. Because fine-tuning never sees the typefaces of calibration and of the ID test, ID
accuracy says how well signs in general are read. Every typeface of an OOD source is new to every
model; for three sources the whole style is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from benchmarks.shifts.experiment import SEEDS, About, Shift, Source, names_of
from benchmarks.shifts.fonts.characters import CHARACTERS, class_folder
from benchmarks.shifts.fonts.faces import load_drawings
from benchmarks.shifts.training import Pretraining

PRETRAINED = (
    "noto-serif",
    "eb-garamond",
    "playfair-display",
    "pt-serif",
    "vollkorn",
    "alegreya",
    "lora-700",
    "cardo",
    "roboto-slab",
    "bitter",
    "zilla-slab",
    "roboto-mono",
    "fira-mono",
    "cousine",
    "pacifico",
    "marck-script",
    "neucha",
    "dancing-script",
    "indie-flower",
    "kalam",
    "patrick-hand",
    "mansalva",
    "playpen-sans",
    "handlee",
    "courgette",
    "architects-daughter",
    "comfortaa",
    "russo-one",
    "righteous",
    "fredoka",
    "lobster",
    "abril-fatface",
    "poiret-one",
    "yeseva-one",
    "audiowide",
    "exo-2",
    "patua-one",
)
FINETUNED = ("open-sans", "roboto", "fira-sans", "inter")
CALIBRATION = ("source-sans-3", "ubuntu", "manrope")
TEST = ("commissioner", "didact-gothic", "m-plus-1p", "geologica")
OOD = {
    "handwriting": ("caveat", "bad-script", "shadows-into-light", "gloria-hallelujah"),
    "display": ("alfa-slab-one", "black-ops-one", "spicy-rice", "dela-gothic-one"),
    "serif": ("tinos", "literata", "merriweather", "cormorant"),
    "pixel": ("press-start-2p", "vt323", "pixelify-sans", "jersey-10"),
    "blackletter": ("unifrakturmaguntia", "unifrakturcook-700", "uncial-antiqua"),
    "sketched": ("cabin-sketch", "fredericka-the-great", "special-elite"),
}

UNSEEN = ("pixel", "blackletter", "sketched")

#: Share of the signs that are light on dark.
_LIGHT = 0.9
#: Every seed has a zero-shot model of its own.
ZEROSHOT_SEEDS = {1: 1, 2: 2}
ABOUT = About(
    name="fonts",
    module="benchmarks.shifts.fonts",
    title="Characters in other typefaces",
    note=Path(__file__).with_name("about.md"),
    pairs=names_of(SEEDS),
    unseen=UNSEEN,
)


def fonts(folder: Path, quick: bool = False) -> Shift:
    """Lay out the benchmark."""
    characters = CHARACTERS[:: len(CHARACTERS) // 24] if quick else CHARACTERS
    order = sorted(characters, key=class_folder)
    faces = 2 if quick else None

    def drawn(names: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        return list(load_drawings(folder, names[:faces], "".join(order)).values())

    return Shift(
        name=ABOUT.name,
        folders=tuple(class_folder(character) for character in order),
        pretraining=_together(drawn(PRETRAINED)),
        finetuning=replace(_together(drawn(FINETUNED)), change=signs),
        calibration=replace(_shared(drawn(CALIBRATION), copies=2), change=signs),
        test=replace(_shared(drawn(TEST)), change=signs),
        ood={name: _shared(drawn(names)) for name, names in OOD.items()},
        zeroshot=Pretraining(steps=3000),
        zeroshot_seeds=ZEROSHOT_SEEDS,
    )


def signs(pictures: Tensor, generator: Generator) -> Tensor:
    """Invert nine pictures in ten to light on dark."""
    light = torch.rand(len(pictures), 1, 1, 1, generator=generator) < _LIGHT
    return torch.where(light, 1 - pictures, pictures)


def _together(faces: Sequence[tuple[Tensor, Tensor]]) -> Source:
    pixels, labels = (torch.cat(parts) for parts in zip(*faces, strict=True))
    return Source(pixels, labels)


def _shared(faces: Sequence[tuple[Tensor, Tensor]], copies: int = 1) -> Source:
    """The characters that all of these faces have: each is one thing, drawn in every face."""
    common = [set(labels.tolist()) for _, labels in faces]
    kept = torch.tensor(sorted(set.intersection(*common)))
    taken = [(pixels[torch.isin(labels, kept)], kept) for pixels, labels in faces]
    pixels, labels = (torch.cat(parts) for parts in zip(*taken, strict=True))
    return Source(pixels, labels, copies=copies, things=labels)
