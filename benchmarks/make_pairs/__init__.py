"""Pairs of models with pictures to judge merges on; each is made once and kept."""

from __future__ import annotations

import difflib

import torch

from benchmarks.make_pairs import digits, emoji, natural, photos
from benchmarks.make_pairs.pair import Pair, Places, Spec
from clipmerge.errors import UsageError

_TESTBEDS = (digits, emoji, photos, natural)
#: Every pair by name, the smallest first.
PAIRS: dict[str, Spec] = {spec.name: spec for bed in _TESTBEDS for spec in bed.PAIRS}


def make(name: str, places: Places) -> Pair:
    """Make a pair, or find it where it was made before."""
    if name not in PAIRS:
        near = difflib.get_close_matches(name, PAIRS, 3)
        raise UsageError(f"no pair '{name}'; did you mean {', '.join(near or list(PAIRS)[:3])}?")
    torch.set_num_threads(1)
    bed = next(bed for bed in _TESTBEDS if PAIRS[name] in bed.PAIRS)
    return bed.make_pair(PAIRS[name], places)
