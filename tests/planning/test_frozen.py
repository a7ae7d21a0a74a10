"""Values that no recipe has."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from clipmerge.files.limits import MOST_MEASURED
from clipmerge.planning.frozen import LittleMeasured, Plain

plain: TypeAdapter[Any] = TypeAdapter(Plain)


@pytest.mark.parametrize("value", [2**63, [-(2**63)], {"a": {"b": [10**400]}}])
def test_numbers_that_no_format_holds_are_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="a number in it is too large"):
        plain.validate_python(value)
    assert plain.validate_python({"a": [2**63 - 1]}) == {"a": [2**63 - 1]}


def test_deep_nesting_is_refused() -> None:
    deep: Any = 1
    for _ in range(20):
        deep = [deep]
    assert plain.validate_python(deep) == deep
    with pytest.raises(ValidationError, match="nested too deeply"):
        plain.validate_python([deep])


def test_more_numbers_than_a_model_has_are_refused() -> None:
    measured: TypeAdapter[Any] = TypeAdapter(Annotated[dict[str, dict[str, float]], LittleMeasured])
    row = {str(number): 0.0 for number in range(MOST_MEASURED // 2)}
    assert len(measured.validate_python({"a": row, "b": row})) == 2
    with pytest.raises(ValidationError, match=f"more than {MOST_MEASURED} numbers"):
        measured.validate_python({"a": row, "b": row, "c": {"x": 1.0}})
