import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmerge.evaluation.tradeoff import compare_with_curve, curve_height
from clipmerge.stats import paired_accuracy_interval


def by_hand(curve: list[tuple[float, float]], at: float) -> float | None:
    """Best height in exact fractions, piece by piece."""
    points = [(Fraction(x), Fraction(y)) for x, y in curve]
    x = Fraction(at)
    heights = [y for x_0, y in points if x_0 == min(x, max(points)[0])]
    for (x_0, y_0), (x_1, y_1) in pairwise(points):
        if x_0 != x_1 and 0 <= (x - x_0) / (x_1 - x_0) <= 1:
            heights.append(y_0 + (y_1 - y_0) * (x - x_0) / (x_1 - x_0))
    return float(max(heights)) if heights else None


def test_a_point_tied_with_the_end_of_the_curve_has_a_gain_and_an_interval() -> None:
    """The same images recognised in sources of 10 and 5; rounding puts the mean of one a bit above
    the other."""
    ids = [rows_of([2, 7, 4], 10), rows_of([2, 1, 4], 10)]
    found = compare_with_curve(ids, [rows_of([9, 5, 6], 10)], range(2), seed=0, resamples=40)
    assert found[1]["id"] != found[2]["id"]
    assert found[2]["gain"] == pytest.approx(0.1)


tenths = st.integers(0, 10).map(lambda n: n / 10)


@given(
    st.lists(st.tuples(tenths, tenths), min_size=2, max_size=6),
    st.lists(tenths, min_size=1, max_size=4),
)
def test_height_is_that_of_exact_fractions(
    curve: list[tuple[float, float]], at: list[float]
) -> None:
    curve_id, curve_ood = [list(axis) for axis in zip(*curve, strict=True)]
    found = curve_height(np.array(curve_id), np.array(curve_ood), np.array(at))
    for x, value in zip(at, found.tolist(), strict=True):
        expected = by_hand(curve, x)
        assert np.isnan(value) if expected is None else value == pytest.approx(expected)


def rows_of(counts: list[int], images: int) -> np.ndarray:
    """Nested: a number of images is recognised, counted from the first."""
    return np.array([[place < count for place in range(images)] for count in counts])


def test_gain_by_hand_on_a_made_up_curve() -> None:
    # alpha 0, 0.5, 1 at ID 40, 60, 80% and OOD 60, 50, 30%; a recipe at 70 / 45, where the curve
    # has 40; sources weigh alike, whatever their size
    ids = rows_of([4, 6, 8, 7], 10)
    oods = [rows_of([12, 10, 6, 9], 20), rows_of([60, 50, 30, 45], 100)]
    found = compare_with_curve([ids], oods, range(3), seed=0, resamples=50)
    assert [each["gain"] for each in found[:3]] == [None] * 3  # the curve's own points
    assert found[3]["gain"] == pytest.approx(0.05)
    assert [each["id"] for each in found] == [0.4, 0.6, 0.8, 0.7]
    assert [each["ood"] for each in found] == pytest.approx([0.6, 0.5, 0.3, 0.45])


def test_below_the_curve_there_is_no_gain_and_beyond_it_that_over_its_most_accurate_point() -> None:
    ids, oods = rows_of([4, 6, 9, 1], 10), rows_of([7, 5, 6, 5], 10)
    found = compare_with_curve([ids], [oods], range(2), seed=0, resamples=20)
    assert [each["gain"] for each in found] == [None, None, pytest.approx(0.1), None]
    assert found[2]["gain_interval"] is not None
    assert "more accurate than any alpha" in found[2]["gain_note"]
    assert found[3]["gain_interval"] is None
    assert "less accurate on ID images" in found[3]["gain_note"]


def test_a_gain_without_an_interval_says_why() -> None:
    """The recipe ties with the low end of the curve on other images, so that half of the draws put
    it below."""
    ids = np.array([[True] * 6 + [False] * 4, [True] * 9 + [False], [False] * 4 + [True] * 6])
    found = compare_with_curve([ids], [rows_of([5, 5, 6], 10)], range(2), seed=0, resamples=100)[2]
    assert found["gain"] == pytest.approx(0.1)
    assert found["gain_interval"] is None
    assert "of the resamples only" in found["gain_note"]


def test_a_gain_of_a_point_that_gives_the_same_answers_is_not_certain() -> None:
    ids = np.array([[True] * 6 + [False] * 4, [True] * 9 + [False], [True] * 9 + [False]])
    same = rows_of([5, 5, 5], 10)
    low, high = compare_with_curve([ids], [same, same], range(2), seed=0, resamples=100)[2][
        "gain_interval"
    ]
    assert high == -low == pytest.approx(paired_accuracy_interval(np.zeros(10))[1] / math.sqrt(2))
