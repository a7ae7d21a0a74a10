"""The picture of the loss path, the bars of the page, and numbers as the report prints them."""

from __future__ import annotations

from typing import Any

import pytest

from clipmerge.output.record import MergeRecord
from clipmerge.planning.measurements import LossPath
from clipmerge.report.loss_path import barrier_of
from clipmerge.report.merge_pictures import path_figure, path_picture
from clipmerge.report.numbers import Scale, format_number
from tests.support.merge_records import example


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


def test_without_the_middle_no_barrier_is_drawn():
    path = LossPath(alphas=(0.0, 0.3, 1.0), losses=(3.0, 1.0, 1.0))
    figure = path_figure(path)
    assert figure is not None
    assert len(figure.axes[0].get_lines()) == 2
    record = MergeRecord.model_validate(example() | {"path": path.model_dump()})
    picture = path_picture(record)
    assert picture is not None
    assert "alpha 0.3: 1.000 nats" in picture.svg
    assert "barrier" not in picture.caption


@pytest.mark.parametrize(
    ("value", "expected"), [(-1.0, (0.0, 25.0)), (3.0, (25.0, 75.0)), (0.0, (25.0, 0.0)), (None, (25.0, 0.0))]
)
def test_bars_start_at_zero(value, expected):
    assert Scale.of([-1.0, 3.0]).bar(value) == expected


@pytest.mark.parametrize(
    ("value", "decimals", "signed", "printed"),
    [
        (1234567.0, None, False, "1.23e+06"),
        (0.0, None, True, "0"),
        (-4e-4, 1, False, "0.0"),
        (0.004, 2, True, "+4e-03"),
    ],
)
def test_a_value_is_printed_with_its_columns_decimals(value: Any, decimals: Any, signed: bool, printed: str) -> None:
    assert format_number(value, decimals, signed=signed) == printed
