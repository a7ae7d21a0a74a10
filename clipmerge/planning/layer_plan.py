"""What one layer gets, and how several task vectors become one."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from clipmerge.planning.frozen import Frozen
from clipmerge.plugins import Alpha, Density


class LayerPlan(Frozen):
    """What one layer gets.

    Attributes:
        alpha: Coefficient of the task vector: 0 = zero-shot, 1 = fine-tuned. Where there are learned coefficients,
            their mean.
        alpha_range: Smallest and largest learned coefficient; they lie beside the plan and are what counts. ``None``
            for one alpha for the whole layer.
        density: Share of the task vector kept, in (0, 1].
        mask: Rule that picks what is kept; ``None`` keeps everything.
        mask_options: The mask's own options.
        parameters: Options of the mask for single parameters, by name; they win over ``mask_options``.
        reason: Why, in words.
    """

    alpha: Alpha
    alpha_range: tuple[Alpha, Alpha] | None = None
    density: Density = 1.0
    mask: str | None = None
    mask_options: dict[str, Any] = Field(default_factory=dict)
    parameters: dict[str, dict[str, Any]] = Field(default_factory=dict)
    reason: str = ""


class Combination(Frozen):
    """How the task vectors of several fine-tuned checkpoints become one, where that is not their weighted sum.

    Attributes:
        rule: Name of a rule in `clipmerge.combinations`.
        options: Its options.
    """

    rule: str
    options: dict[str, Any] = Field(default_factory=dict)
