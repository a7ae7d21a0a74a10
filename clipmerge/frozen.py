"""Base class of all records that are written as JSON and read again."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from clipmerge.files.limits import MAX_LAYERS, MAX_MEASURED

_DEEPEST, _LARGEST = 20, 2**63


class Frozen(BaseModel):
    """A frozen model that refuses unknown keys, NaN and infinity."""

    # built on first use: otherwise a class would be built again for each class with a field of its
    # type, 40 ms at every start
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    def replace(self, **changes: Any) -> Self:
        """A copy with other values in some fields, which are not validated."""
        return self.model_copy(update=changes)


def _check_plain(value: Any) -> Any:
    """Refuse values that no recipe has and that break printing: deep nesting, numbers of many
    digits.
    """
    level = [value]
    depth = 0
    while level:
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        inner: list[Any] = []
        for item in level:
            if isinstance(item, int) and abs(item) >= _LARGEST:
                raise ValueError("a number in it is too large")
            inner += (
                item.values()
                if isinstance(item, dict)
                else item
                if isinstance(item, list | tuple)
                else []
            )
        level = inner
        depth = depth + 1
    return value


def _limit_layers(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_LAYERS:
        raise ValueError(f"more than {MAX_LAYERS} layers")
    return value


def _limit_measurements(value: Any) -> Any:
    rows = value.values() if isinstance(value, dict) else ()
    if sum(len(row) for row in rows if isinstance(row, dict)) > MAX_MEASURED:
        raise ValueError(f"more than {MAX_MEASURED} numbers")
    return value


#: A value of any JSON type, within limits.
Plain = Annotated[Any, AfterValidator(_check_plain)]
#: Refuses more layers than any model has, before an object is made for each.
FewLayers = BeforeValidator(_limit_layers)
#: Refuses more measured numbers than any model has, because a page would draw all of them.
LittleMeasured = BeforeValidator(_limit_measurements)
