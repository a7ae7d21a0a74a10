"""The picture of the loss path, and the bars of the page."""

from __future__ import annotations

import pytest

from clipmerge.planning.measurements import LossPath
from clipmerge.report.loss_path import barrier_of
from clipmerge.report.numbers import Scale
from clipmerge.report.path_picture import path_figure


def test_loss_chart_keeps_order_and_scale():
    path = LossPath(alphas=(1.0, 0.0, 0.5), losses=(1.0, 3.0, 1.0))
    figure = path_figure(path)
    assert figure is not None
    straight, curve, gap = figure.axes[0].get_lines()
    assert curve.get_xydata().tolist() == [[0, 3], [0.5, 1], [1, 1]]
    assert straight.get_xydata().tolist() == [[0, 3], [1, 1]]
    assert gap.get_xydata().tolist() == [[0.5, 2], [0.5, 1]]
    assert barrier_of([(0.0, 3.0), (0.5, 1.0), (1.0, 1.0)]) == (-1.0, 2.0)


@pytest.mark.parametrize("path", [None, LossPath(alphas=(0.5,), losses=(1.0,)), LossPath(alphas=(), losses=())])
def test_no_loss_chart_without_two_points(path):
    assert path_figure(path) is None


@pytest.mark.parametrize(
    ("value", "expected"), [(-1.0, (0.0, 25.0)), (3.0, (25.0, 75.0)), (0.0, (25.0, 0.0)), (None, (25.0, 0.0))]
)
def test_bars_start_at_zero(value, expected):
    assert Scale.of([-1.0, 3.0]).bar(value) == expected
