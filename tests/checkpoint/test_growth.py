"""The loss of length against the movement, within blocks."""

from __future__ import annotations

import numpy as np
import pytest

from clipmerge.checkpoint.growth import shrinkage

Rows = list[tuple[str, float, float]]


def drawn(slope: float, seed: int = 0, *, blocks: int = 6, matrices: int = 5) -> Rows:
    """Matrices that lose length in proportion to their squared movement, and in each block by its own decay."""
    rng = np.random.default_rng(seed)
    rows = []
    for block in range(blocks):
        decay = rng.uniform(-0.05, 0.05)
        for moved in rng.uniform(0.05, 0.3, matrices):
            noise = rng.normal(0, 0.01) * moved
            rows.append((f"vision.{block}", float(moved), float(-slope * moved**2 - decay + noise)))
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_the_slope_is_that_of_a_regression_with_a_constant_per_block(seed: int) -> None:
    rows = drawn(0.7, seed)
    names = sorted({block for block, _, _ in rows})
    design = np.array([[moved**2, *(float(block == name) for name in names)] for block, moved, _ in rows])
    weight = np.array([1 / moved for _, moved, _ in rows])
    target = np.array([-along for _, _, along in rows]) * weight
    design = design * weight[:, None]
    found, *_ = np.linalg.lstsq(design, target, rcond=None)
    rest = target - design @ found
    spread = rest @ rest / (len(rows) - design.shape[1]) * np.linalg.inv(design.T @ design)[0, 0]
    assert shrinkage(rows) == pytest.approx((found[0], spread**0.5), rel=1e-9)


def test_a_decay_of_each_block_alone_is_no_slope() -> None:
    for true in (0.0, 1.0):
        slope, error = shrinkage(drawn(true)) or (9.0, 9.0)
        assert abs(slope - true) < 4 * error < 0.4


def test_nothing_is_said_of_few_matrices() -> None:
    assert shrinkage(drawn(1.0, blocks=3, matrices=3)) is None
    assert shrinkage([(f"vision.{number}", 0.1, 0.0) for number in range(50)]) is None
    assert shrinkage([]) is None
