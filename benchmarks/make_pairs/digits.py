"""Digits: the demo's zero-shot model, fine-tuned on clean handwriting; the smallest pairs.

They need no download and are made in seconds. The shifts are those of the demo.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.make_pairs.pair import Pair, Places, Roles, Spec, write_pair
from benchmarks.make_pairs.pictures import Picture, as_png
from benchmarks.models import Regime
from clipmerge.demo.data import SHIFTS, TEMPLATE, digits_of_split, shifted_pixels
from clipmerge.demo.pair import prepare
from clipmerge.images.digits import CLASS_NAMES, digits_as_rgb

_REGIMES = {
    "aggressive": Regime(1e-3, 25, text=True, mirror=False, move=1),
    "mild": Regime(3e-4, 8, text=True, mirror=False, move=1),
}
PAIRS = tuple(
    Spec(f"{how}-digits-{seed}", "digits", "demo", regime, seed)
    for seed in (0, 1)
    for how, regime in _REGIMES.items()
)


def make_pair(spec: Spec, places: Places) -> Pair:
    """Make one pair; seeds differ in fine-tuning alone."""
    zeroshot = prepare(places.cache / "demo").zeroshot
    pictures: list[Picture] = []

    def added(domain: str, pixels: Tensor, digits: Tensor) -> list[int]:
        start = len(pictures)
        for image, digit in zip(pixels, digits.tolist(), strict=True):
            pictures.append(Picture(domain, CLASS_NAMES[digit], as_png(image)))
        return list(range(start, len(pictures)))

    own = {}
    for role, split in (("train", "train"), ("val", "calibration"), ("test", "test")):
        ink, digits = digits_of_split(split)
        own[role] = added(role, digits_as_rgb(ink), digits)
    ink, digits = digits_of_split("test")
    ood = {shift: added(shift, shifted_pixels(shift, ink), digits) for shift in SHIFTS}
    roles = Roles(tuple(CLASS_NAMES), own["train"], own["val"], own["test"], ood)
    return write_pair(spec, places.cache, zeroshot, TEMPLATE, pictures, roles)
