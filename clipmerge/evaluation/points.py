"""Points that a sweep evaluates: points of the alpha curve, plans and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from clipmerge.checkpoint import Inputs
from clipmerge.planning.plan import LayerPlan, Plan

if TYPE_CHECKING:
    from clipmerge.learning.interpolate import Path


@dataclass(frozen=True)
class Point:
    """A point to evaluate: an alpha of the curve, a plan, or a checkpoint aligned with the
    zero-shot one.
    """

    alpha: float | None
    plan: Plan | None = None
    checkpoint: Inputs | None = None

    def move(self, model: Path) -> None:
        """Set a model's weights to those of this point."""
        if self.checkpoint is not None:
            model.set_checkpoint(self.checkpoint)
        elif self.plan is not None:
            model.set_plan(self.plan)
        else:
            model.set_alpha(cast("float", self.alpha))


def weights_key(plan: Plan, inputs: Inputs) -> Any:
    """Key that is equal for two plans only if they give the same weights; if these are on the
    curve, their alpha.
    """
    layers = [layer for layer, names in inputs.layers.items() if any(map(inputs.merges, names))]
    entries = [plan.layers.get(layer, LayerPlan(alpha=0.0)) for layer in layers]
    alphas = {entry.alpha for entry in entries}
    average = (1.0 / len(plan.weights),) * len(plan.weights)
    # the curve has the zero-shot model's parameters
    is_on_curve = (
        len(alphas) == 1
        and not any(entry.mask or entry.alpha_range for entry in entries)
        and not plan.combine
        and plan.missing != "keep-finetuned"
        and plan.weights == average
    )
    if is_on_curve:
        return float(alphas.pop())
    settings = plan.model_dump_json(exclude={"recipe", "stragglers"})
    tensors = (*plan.scores.values(), *plan.coefficients.values())
    return (settings, *map(id, tensors))
