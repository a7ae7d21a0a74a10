"""Rows of named values, as HTML for a notebook and as a pandas DataFrame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar

from clipmerge.errors import UsageError

if TYPE_CHECKING:
    import pandas

Rows = list[dict[str, Any]]


def layer_rows(layers: Mapping[str, Any], measured: Mapping[str, Mapping[str, float]], *further: str) -> Rows:
    """One row per layer: its settings, with further ones by name, its statistics and the reason."""
    columns = ("alpha", "density", "mask", *further)
    return [
        {"layer": name, **{column: getattr(layer, column) for column in columns}, **measured.get(name, {})}
        | {"reason": layer.reason}
        for name, layer in layers.items()
    ]


class Tabular(ABC):
    """A result that is a table: a short repr, an HTML table for notebooks, and a pandas DataFrame on request."""

    _index: ClassVar[str] = "name"

    @abstractmethod
    def _rows(self) -> Rows:
        """The table's rows."""

    @abstractmethod
    def _caption(self) -> str:
        """The result in a few words."""

    def _columns(self) -> list[str]:
        """Names of all values, in order of first appearance; rows may lack some."""
        return list(dict.fromkeys(name for row in self._rows() for name in row))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._caption()})"

    def _repr_html_(self) -> str:
        """The table, for a notebook."""

        def cell(value: Any) -> str:
            return "" if value is None else escape(f"{value:.4g}" if isinstance(value, float) else str(value))

        rows, names = self._rows(), self._columns()
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        body = "".join(f"<tr>{''.join(f'<td>{cell(row.get(name))}</td>' for name in names)}</tr>" for row in rows)
        above = f"<caption>{escape(self._caption())}</caption>"
        return f"<table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def to_frame(self) -> pandas.DataFrame:
        """The table as a DataFrame.

        Raises:
            UsageError: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UsageError("to_frame() needs pandas; install it with `pip install pandas`") from None
        return pandas.DataFrame(self._rows(), columns=self._columns() or [self._index]).set_index(self._index)
