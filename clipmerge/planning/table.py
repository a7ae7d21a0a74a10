"""Rows of named values, as HTML for a notebook and as a pandas DataFrame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar

from clipmerge.errors import UsageError

if TYPE_CHECKING:
    import pandas

Rows = Sequence[Mapping[str, Any]]


def columns(rows: Rows) -> list[str]:
    """List the names of all values, in order of first appearance; rows may lack some."""
    return list(dict.fromkeys(name for row in rows for name in row))


def to_html(rows: Rows, caption: str = "") -> str:
    """Format rows as an HTML table.

    Example:
        >>> to_html([{"layer": "a<b", "alpha": 0.5}])
        '<table><thead><tr><th>layer</th><th>alpha</th></tr></thead><tbody><tr><td>a&lt;b</td><td>0.5</td></tr></tbody></table>'
    """

    def cell(value: Any) -> str:
        return "" if value is None else escape(f"{value:.4g}" if isinstance(value, float) else str(value))

    names = columns(rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{cell(row.get(name))}</td>' for name in names)}</tr>" for row in rows)
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def to_frame(rows: Rows, index: str) -> pandas.DataFrame:
    """Make a DataFrame with one of the values as its index."""
    try:
        import pandas
    except ImportError:
        raise UsageError("to_frame() needs pandas; install it with `pip install pandas`") from None
    return pandas.DataFrame(list(rows), columns=columns(rows) or [index]).set_index(index)


class Tabular(ABC):
    """A result that is a table: a short repr, an HTML table for notebooks, and a pandas DataFrame on request."""

    _index: ClassVar[str] = "name"

    @abstractmethod
    def _rows(self) -> Rows:
        """The table's rows."""

    @abstractmethod
    def _caption(self) -> str:
        """The result in a few words."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._caption()})"

    def _repr_html_(self) -> str:
        """The table, for a notebook."""
        return to_html(self._rows(), self._caption())

    def to_frame(self) -> pandas.DataFrame:
        """The table as a DataFrame.

        Raises:
            UsageError: If pandas is not installed.
        """
        return to_frame(self._rows(), self._index)
