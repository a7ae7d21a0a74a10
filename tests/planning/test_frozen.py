"""Values that no recipe has."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from clipmerge.planning.frozen import Plain

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
