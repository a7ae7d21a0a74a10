"""Digits: the demo's zero-shot model, fine-tuned on clean handwriting; the smallest pairs.

They need no download and are made in seconds. The shifts are those of the demo.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.make_pairs.pair import Pair, Places, Roles, Spec, write_pair
from benchmarks.make_pairs.pictures import Album
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
    album = Album()
    positions = {}
    for role, split in (("train", "train"), ("val", "calibration"), ("test", "test")):
        ink, digits = digits_of_split(split)
        positions[role] = album.add(role, digits_as_rgb(ink), _names(digits))
    ink, digits = digits_of_split("test")
    for shift in SHIFTS:
        pixels = shifted_pixels(shift, ink)
        positions[f"ood-{shift}"] = album.add(shift, pixels, _names(digits))
    roles = Roles(tuple(CLASS_NAMES), positions)
    return write_pair(spec, places.cache, zeroshot, TEMPLATE, album.pictures, roles)


def _names(digits: Tensor) -> list[str]:
    return [CLASS_NAMES[digit] for digit in digits.tolist()]
