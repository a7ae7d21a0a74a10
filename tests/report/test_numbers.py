"""Numbers as the report prints them."""

from __future__ import annotations

from typing import Any

import pytest

from clipmerge.report.numbers import format_number


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
