"""Pairs of models with pictures to judge merges on; each is made once and kept."""

from __future__ import annotations

import torch

from benchmarks.make_pairs import digits, emoji, hub, natural, photos
from benchmarks.make_pairs.pair import Pair, Places, Spec
from clipmerge.errors import UsageError, did_you_mean

_TESTBEDS = (digits, emoji, photos, natural, hub)
#: Every pair by name, the smallest first.
PAIRS: dict[str, Spec] = {spec.name: spec for bed in _TESTBEDS for spec in bed.PAIRS}


def make(name: str, places: Places) -> Pair:
    """Make a pair, or find it where it was made before."""
    if name not in PAIRS:
        raise UsageError(f"no pair '{name}'.{did_you_mean(name, PAIRS)}")
    torch.set_num_threads(1)
    bed = next(bed for bed in _TESTBEDS if PAIRS[name] in bed.PAIRS)
    return bed.make_pair(PAIRS[name], places)
