"""Measures that pass prompts through the text tower repeatedly use fewer of them if there are many."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipmerge.calibration.objective import Objective
    from clipmerge.planning.measurements import Measurements


def with_few_prompts(measure: Callable[..., Measurements]) -> Callable[..., Measurements]:
    """Run a measure inside `Objective.fewer_prompts`, and add the note to its result.

    Args:
        measure: The measure.

    Returns:
        The measure with the same options.
    """

    @wraps(measure)
    def bounded(objective: Objective, **options: Any) -> Measurements:
        with objective.fewer_prompts() as notes:
            found = measure(objective, **options)
        return found.model_copy(update={"notes": (*notes, *found.notes)})

    return bounded
