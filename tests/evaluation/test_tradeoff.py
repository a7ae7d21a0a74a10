import math
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clipmerge
from clipmerge.demo.pair import prepare
from clipmerge.evaluation.tradeoff import curve_height, gains_over_curve, question_of
from clipmerge.images.image_set import CaptionedImages, LabelledImages, Pictures
from clipmerge.stats import paired_accuracy_interval


def by_hand(curve: list[tuple[float, float]], at: float) -> float:
    """Best height at this accuracy or a higher one in exact fractions, piece by piece."""
    points = [(Fraction(x), Fraction(y)) for x, y in curve]
    x = min(Fraction(at), max(points)[0])
    heights = [y for x_0, y in points if x_0 >= x]
    for (x_0, y_0), (x_1, y_1) in pairwise(points):
        if x_0 != x_1 and 0 <= (x - x_0) / (x_1 - x_0) <= 1:
            heights.append(y_0 + (y_1 - y_0) * (x - x_0) / (x_1 - x_0))
    return float(max(heights))


tenths = st.integers(0, 10).map(lambda n: n / 10)


@given(
    st.lists(st.tuples(tenths, tenths), min_size=2, max_size=6),
    st.lists(tenths, min_size=1, max_size=4),
)
def test_height_is_that_of_exact_fractions(
    curve: list[tuple[float, float]], at: list[float]
) -> None:
    target, other = [np.array(axis) for axis in zip(*curve, strict=True)]
    expected = [by_hand(curve, x) for x in at]
    assert curve_height(target, other, np.array(at)) == pytest.approx(expected)


def rows_of(counts: list[int], images: int) -> np.ndarray:
    """Nested: a number of images is recognised, counted from the first."""
    return np.array([[place < count for place in range(images)] for count in counts])


def test_a_point_tied_with_the_end_of_the_curve_is_not_beyond_it() -> None:
    """The same images recognised in sources of 10 and 5; rounding puts the mean of one a bit above
    the other."""
    ids = [rows_of([2, 7, 4], 10), rows_of([2, 1, 4], 10)]
    (found,) = gains_over_curve(ids, [rows_of([9, 5, 6], 10)], 2, seed=0, resamples=40)
    assert found.value == pytest.approx(0.1)


def test_gain_by_hand_on_a_made_up_curve() -> None:
    # alpha 0, 0.5, 1 at 40, 60, 80% on the target and 60, 50, 30% elsewhere; one recipe at 70 / 45,
    # where the curve has 40; one above and one below the whole curve's accuracy on the target;
    # sources weigh alike, whatever their size
    ids = rows_of([4, 6, 8, 7, 9, 1], 10)
    oods = [rows_of([12, 10, 6, 9, 9, 9], 20), rows_of([60, 50, 30, 45, 45, 45], 100)]
    found = gains_over_curve([ids], oods, 3, seed=0, resamples=50)
    assert [each.value for each in found] == pytest.approx([0.05, 0.15, -0.15])
    assert all(low < each.value < high for each in found for low, high in [each.interval])


def test_a_gain_of_a_point_that_gives_the_same_answers_is_not_certain() -> None:
    ids = np.array([[True] * 6 + [False] * 4, [True] * 9 + [False], [True] * 9 + [False]])
    same = rows_of([5, 5, 5], 10)
    (found,) = gains_over_curve([ids], [same, same], 2, seed=0, resamples=100)
    low, high = found.interval
    assert high == -low == pytest.approx(paired_accuracy_interval(np.zeros(10))[1] / math.sqrt(2))


def test_the_gain_of_a_merge_hardly_depends_on_the_grid(tmp_path: Path) -> None:
    demo = prepare(tmp_path / "demo")
    options: dict[str, Any] = {"id": demo.clean, "ood": dict(demo.shifted), "recipes": "lines"}
    gains = []
    for count in (3, 5, 11, 21):
        alphas = np.linspace(0, 1, count).round(2)
        swept = clipmerge.sweep(demo.zeroshot, demo.finetuned, alphas=alphas, **options)
        gains.append(swept.record["recipes"][0]["gain"]["shift"])
    values = [gain["value"] for gain in gains]
    widths = [high - low for gain in gains for low, high in [gain["interval"]]]
    assert max(values) - min(values) < min(widths) / 10


PICTURES = Pictures(str, str, range(2))


@pytest.mark.parametrize(
    ("names", "question"),
    [(("traffic light", "Dog"), "shift"), (("dog", "cat"), "task"), ((), "task")],
)
def test_a_shift_has_classes_of_the_target(names: tuple[str, ...], question: str) -> None:
    target = LabelledImages("a", PICTURES, (0, 1), ("dog", "traffic_light", "bus"))
    captioned = CaptionedImages("b", PICTURES, (0, 1), captions=(("x",), ("y",)))
    other = LabelledImages("c", PICTURES, (0, 1), names) if names else captioned
    assert question_of(other, [target]) == question
    assert question_of(captioned, [captioned]) == "shift"
