from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import equal_labels, judge, references
from benchmarks.make_pairs import PAIRS, digits
from benchmarks.make_pairs.pair import Pair, Places
from benchmarks.models import Regime


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The smallest pair, trained briefly."""
    regime = Regime(1e-3, 6, text=True, mirror=False, move=1)
    spec = replace(PAIRS["aggressive-digits-0"], regime=regime)
    return digits.make_pair(spec, Places(tmp_path_factory.mktemp("pairs")))


@pytest.fixture(scope="session")
def judged(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of its results, with a recipe and the baselines of equal labels."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equal_labels, "ALPHAS", (0.5, 1.0))
        judge.judge(pair, "lines", who="a test", folder=folder)
        equal_labels.equal_labels(pair, folder)
        references.references(pair, folder)
    return folder
