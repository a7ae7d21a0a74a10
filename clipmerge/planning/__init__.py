"""What was decided, measured and judged: frozen records that are written as JSON and read again."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A frozen model that refuses unknown keys, NaN and infinity."""

    # built on first use: otherwise a class would be built again for each class with a field of its
    # type, 40 ms at every start
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    def replace(self, **changes: Any) -> Self:
        """A copy with other values in some fields, which are not validated."""
        return self.model_copy(update=changes)
