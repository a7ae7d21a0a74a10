"""Intervals against an independent library, and their coverage for every possible outcome."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap

from clipmerge.evaluation.intervals import mean_of_sources, mean_share, paired, wilson


@given(st.integers(1, 300).flatmap(lambda images: st.tuples(st.integers(0, images), st.just(images))))
def test_wilson_is_scipys(counts: tuple[int, int]) -> None:
    right, images = counts
    expected = binomtest(right, images).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(right / images, images) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_a_share_of_images_that_are_recognised_or_not_is_wilsons(right: list[bool]) -> None:
    values = np.array(right, dtype=float)
    assert mean_share(values) == pytest.approx(wilson(float(values.mean()), len(values)))
    assert mean_of_sources([values > 0]) == pytest.approx(wilson(float(values.mean()), len(values)))


def test_views_that_agree_less_make_the_mean_more_certain() -> None:
    alike, different = np.array([0.0, 1.0] * 50), np.array([0.4, 0.6] * 50)
    width = {name: np.diff(mean_share(values))[0] for name, values in (("alike", alike), ("different", different))}
    assert width["different"] < width["alike"] / 3


def test_two_sources_of_one_kind_are_as_certain_as_one_of_both() -> None:
    right = np.random.default_rng(0).random(400) < 0.7
    both = mean_of_sources([right[:200], right[200:]])
    assert both == pytest.approx(wilson(float(right.mean()), 400), abs=0.003)


@pytest.mark.parametrize("images", [5, 10, 20, 50])
@pytest.mark.parametrize(("better", "worse"), [(0.02, 0.05), (0.1, 0.1), (0.05, 0.3), (0.001, 0.01)])
def test_the_paired_interval_has_its_level_over_every_outcome(images: int, better: float, worse: float) -> None:
    covered = 0.0
    for plus in range(images + 1):
        for minus in range(images + 1 - plus):
            same = images - plus - minus
            ways = math.factorial(images) // (math.factorial(plus) * math.factorial(minus) * math.factorial(same))
            low, high = paired(np.repeat([1.0, -1.0, 0.0], [plus, minus, same]))
            if low <= better - worse <= high:
                covered += ways * better**plus * worse**minus * (1 - better - worse) ** same
    assert covered >= 0.94  # within two points of the level, as all published intervals


def test_the_paired_interval_is_the_bootstraps_where_images_are_many() -> None:
    rng = np.random.default_rng(0)
    differences = rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0], size=2000, p=[0.02, 0.05, 0.8, 0.08, 0.05])
    expected = bootstrap((differences,), np.mean, method="percentile", rng=rng, n_resamples=4000).confidence_interval
    assert paired(differences) == pytest.approx((expected.low, expected.high), abs=0.001)


def test_the_paired_interval_stays_inside_what_a_difference_can_be() -> None:
    assert paired(np.ones(2))[1] <= 1
    assert paired(-np.ones(2))[0] >= -1
    low, high = paired(np.zeros(20))  # models that never differ may still differ on other images
    assert low < -0.08 < 0.08 < high
