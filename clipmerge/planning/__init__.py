"""Frozen records of decisions, measurements and verdicts, stored as JSON; and results shown as
tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from html import escape
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict

from clipmerge.types import Json

if TYPE_CHECKING:
    import pandas

Rows = list[Json]


class Frozen(BaseModel):
    """A frozen model that refuses unknown keys, NaN and infinity."""

    # built on first use: otherwise a class would be built again for each class with a field of its
    # type, 40 ms at every start
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    def replace(self, **changes: Any) -> Self:
        """Copy with new values in some fields, without validating them."""
        return self.model_copy(update=changes)


class Tabular(ABC):
    """A result that is a table: a short repr, HTML for notebooks, and a pandas DataFrame."""

    @abstractmethod
    def _rows(self) -> Rows:
        """The rows, each a value by column; the first column names the row."""

    @abstractmethod
    def _caption(self) -> str:
        """The result in one line."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._caption()})"

    __str__ = __repr__  # a pydantic model has another

    def _repr_html_(self) -> str:
        """The table, for a notebook."""
        table = self.to_frame().to_html(float_format="{:.4g}".format, na_rep="")
        return f"<p>{escape(self._caption())}</p>{table}"

    def to_frame(self) -> pandas.DataFrame:
        """The table as a DataFrame."""
        import pandas

        frame = pandas.DataFrame(self._rows())
        return frame if frame.empty else frame.set_index(frame.columns[0])
