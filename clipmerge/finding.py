"""A finding: what was decided, measured or warned of, as a kind and its numbers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from clipmerge.frozen import Frozen
from clipmerge.types import Json

#: Kind of a sentence that has no numbers: a note about the inputs, or a reason written by hand.
NOTE = "note"
#: What follows from a failed check of the inputs, by its name: an error that `allow` waves through,
#: or a warning.
CHECKS: dict[str, Literal["error", "warning"]] = {
    "swapped": "error",
    "unrelated": "error",
    "equal-models": "warning",
    "half-zeroshot": "warning",
    "blank-images": "error",
    "same-images": "error",
    "pixel-range": "error",
    "at-chance": "error",
    "odd-names": "error",
    "zeroshot-at-chance": "warning",
    "swapped-sources": "warning",
}


class Finding(Frozen):
    """One thing that was decided, measured or warned of. A text becomes a finding of kind ``note``.

    Attributes:
        kind: What it is; `clipmerge.report.text` has a sentence for each kind.
        values: Its numbers and names.
        text: The sentence, for readers of JSON; programs use ``kind`` and ``values``.
    """

    kind: Annotated[str, Field(min_length=1, max_length=80)]
    values: dict[str, Any] = Field(default_factory=dict)
    text: str = ""

    @classmethod
    def of(cls, kind: str, **values: Any) -> Finding:
        """Make a finding from its kind and numbers."""
        return cls(kind=kind, values=values)

    @classmethod
    def note(cls, text: str) -> Finding:
        """Make a finding from a sentence."""
        return cls(kind=NOTE, values={"text": text})

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"kind": NOTE, "values": {"text": value}} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _without_empty(self, serialize: SerializerFunctionWrapHandler) -> Json:
        data: Json = serialize(self)
        return {key: value for key, value in data.items() if key == "kind" or value}

    def __str__(self) -> str:
        """The kind and the numbers, for tables and logs."""
        if self.kind == NOTE:
            return str(self.values.get("text", ""))
        numbers = (
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.values.items()
        )
        listed = ", ".join(numbers)
        return f"{self.kind} ({listed})" if listed else self.kind
