"""The loss chart and the bars of the page."""

from __future__ import annotations

import pytest

from clipmerge.planning.measurements import LossPath
from clipmerge.report.numbers import Scale
from clipmerge.report.path_chart import path_chart


def test_loss_chart_keeps_order_and_scale():
    chart = path_chart(LossPath(alphas=(1.0, 0.0, 0.5), losses=(1.0, 3.0, 1.0)))
    assert chart is not None
    left, middle, right = chart.points
    assert (left.alpha, middle.alpha, right.alpha) == (0.0, 0.5, 1.0)
    assert left.y < middle.y == right.y
    assert middle.x - left.x == pytest.approx(right.x - middle.x)
    assert chart.barrier == -1.0
    assert chart.middle is not None
    assert chart.middle[2] == pytest.approx((left.y + right.y) / 2)


@pytest.mark.parametrize("path", [None, LossPath(alphas=(0.5,), losses=(1.0,)), LossPath(alphas=(), losses=())])
def test_no_loss_chart_without_two_points(path):
    assert path_chart(path) is None


@pytest.mark.parametrize(
    ("value", "expected"), [(-1.0, (0.0, 25.0)), (3.0, (25.0, 75.0)), (0.0, (25.0, 0.0)), (None, (25.0, 0.0))]
)
def test_bars_start_at_zero(value, expected):
    assert Scale.of([-1.0, 3.0]).bar(value) == expected
