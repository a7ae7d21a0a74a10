"""The ranges that options of methods, measures and masks share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field


def _not_a_switch(value: Any) -> Any:
    """Refuse ``yes`` and ``true``, which would pass for 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


# beyond it float32 arithmetic overflows sooner or later, and blames the weights
_LARGEST = 1e9
_Float = Annotated[float, BeforeValidator(_not_a_switch)]
_Int = Annotated[int, BeforeValidator(_not_a_switch)]

#: Mixing coefficient: 0 = zero-shot, 1 = fine-tuned; outside [0, 1] it extrapolates.
Alpha = Annotated[_Float, Field(allow_inf_nan=False)]
#: Share of the task vector kept.
Density = Annotated[_Float, Field(gt=0, le=1)]
#: A share or a probability.
Share = Annotated[_Float, Field(ge=0, le=1)]
#: A radius, a threshold or another number that must be positive.
Positive = Annotated[_Float, Field(gt=0, le=_LARGEST)]
#: A factor that may be zero.
NonNegative = Annotated[_Float, Field(ge=0, le=_LARGEST)]
#: A count of at least one.
Count = Annotated[_Int, Field(ge=1, le=1_000_000)]
#: A kind of generic change of images.
Augmentation = Literal["geometry", "colour", "grey", "blur", "noise"]
