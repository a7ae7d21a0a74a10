"""The ranges that options of methods, measures and masks share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

#: Mixing coefficient: 0 = zero-shot, 1 = fine-tuned; outside [0, 1] it extrapolates.
Alpha = Annotated[float, Field(allow_inf_nan=False)]
#: Share of the task vector kept.
Density = Annotated[float, Field(gt=0, le=1)]
#: A share or a probability.
Share = Annotated[float, Field(ge=0, le=1)]
#: A radius, a threshold or another number that must be positive.
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
#: A count of at least one.
Count = Annotated[int, Field(ge=1)]
