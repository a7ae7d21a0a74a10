"""Base classes of plans and records, which are stored as JSON, and of results shown as tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from codecs import BOM_UTF8
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from clipmerge.errors import ClipmergeError, did_you_mean, did_you_mean_path
from clipmerge.types import Json

if TYPE_CHECKING:
    import pandas

Rows = list[Json]
_Kind = TypeVar("_Kind", bound="Frozen")


class Frozen(BaseModel):
    """A pydantic model whose fields cannot change. Unknown keys, NaN and infinity are errors."""

    # `defer_build`: pydantic builds a class on first use. Otherwise it would build the class again
    # for every class that has a field of its type, which takes 40 ms at every start
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with new values in some fields. The new values are not validated."""
        return self.model_copy(update=changes)


def read_json(
    kind: type[_Kind],
    path: Path,
    error: type[ClipmergeError],
    advice: str,
    keys: Iterable[str] = (),
) -> _Kind:
    """Read a plan or a record from its JSON file.

    Args:
        kind: The class to read.
        path: The file.
        error: Class of the error that is raised if the file has other content or another version.
        advice: The user's next step, for error messages.
        keys: Keys that may be suggested in place of an unknown key.
    """
    try:
        return kind.model_validate_json(path.read_bytes().removeprefix(BOM_UTF8))
    except OSError as fault:
        raise ClipmergeError(
            f"{path}: cannot be read ({fault.strerror}); {advice}.{did_you_mean_path(path)}"
        ) from None
    except ValidationError as fault:
        first = fault.errors()[0]
        place = ".".join(map(str, first["loc"])) or "content"
        unknown = place.rpartition(".")[2] if first["type"] == "extra_forbidden" else ""
        raise error(
            f"{path}: is not a {kind.__name__.lower()} that this version of clipmerge reads:"
            f" {place}: {first['msg']}; {advice}.{did_you_mean(unknown, keys)}"
        ) from None


class Tabular(ABC):
    """A result that is a table: a short repr, HTML for notebooks, and a pandas DataFrame."""

    @abstractmethod
    def _rows(self) -> Rows:
        """Return the rows, each as values by column; the first column names the row."""

    @abstractmethod
    def _caption(self) -> str:
        """Summarise the table in one line, for `repr` and above the table in a notebook."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._caption()})"

    __str__ = __repr__  # pydantic's models have their own `__str__`

    def _repr_html_(self) -> str:
        """Return the table as HTML, for a notebook."""
        table = self.to_frame().to_html(float_format="{:.4g}".format, na_rep="")
        return f"<p>{escape(self._caption())}</p>{table}"

    def to_frame(self) -> pandas.DataFrame:
        """Return the table as a DataFrame."""
        import pandas

        frame = pandas.DataFrame(self._rows())
        return frame if frame.empty else frame.set_index(frame.columns[0])
