"""The settings of one layer, and the rule that combines several task vectors."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from clipmerge.errors import PlanError, RecipeError, did_you_mean
from clipmerge.finding import Finding
from clipmerge.frozen import Frozen
from clipmerge.plugins import Alpha, Density, check_options, plugin_names, plugin_options
from clipmerge.types import Json, Names


@dataclass(frozen=True)
class LearnedAlpha:
    """Coefficients that were learned for the entries of a layer and lie beside the plan: their mean
    and range.
    """

    mean: float
    low: float
    high: float


class LayerPlan(Frozen):
    """The settings of one layer.

    Attributes:
        alpha: Coefficient of the task vector: 0 = zero-shot, 1 = fine-tuned; the mean of learned
            coefficients.
        alpha_range: Smallest and largest learned coefficient; the merge uses the coefficients
            themselves, beside the plan. ``None`` if the whole layer has one alpha.
        density: Share of the task vector kept, in (0, 1].
        mask: Rule that selects the entries to keep; ``None`` keeps all.
        mask_options: The mask's own options.
        parameters: Options of the mask for single parameters, by name; they override
            ``mask_options``.
        reason: Reason for the settings; ``None`` if the method gives none.
    """

    alpha: Alpha
    alpha_range: tuple[Alpha, Alpha] | None = None
    density: Density = 1.0
    mask: str | None = None
    mask_options: Json = Field(default_factory=dict)
    parameters: dict[str, Json] = Field(default_factory=dict)
    reason: Finding | None = None

    @property
    def coefficient(self) -> float | LearnedAlpha:
        """The one coefficient of the layer, or the summary of those that were learned."""
        return (
            self.alpha if self.alpha_range is None else LearnedAlpha(self.alpha, *self.alpha_range)
        )


class Combination(Frozen):
    """A rule that replaces the weighted sum of several fine-tuned checkpoints' task vectors.

    Attributes:
        rule: Name of the method whose file holds the rule.
        options: Its options.
    """

    rule: str
    options: Json = Field(default_factory=dict)


def check_mask(name: str, layer: LayerPlan, mask: str, parameters: Names) -> None:
    """Check one layer's mask rule against the available masks."""
    masks = plugin_names("masks")
    if mask not in masks:
        raise PlanError(
            f"layer '{name}' has the unknown mask '{mask}' (masks:"
            f" {', '.join(masks)}).{did_you_mean(mask, masks)}"
        )
    if layer.density != 1.0 and "density" not in plugin_options("masks", mask):
        raise PlanError(
            f"layer '{name}' has density {layer.density}, which the mask '{mask}' does not have; "
            "set its mask_options, or name another mask"
        )
    for parameter, options in {"": {}, **layer.parameters}.items():
        if parameter and parameter not in parameters:
            raise PlanError(
                f"layer '{name}' names parameter '{parameter}', which it does not have."
                f"{did_you_mean(parameter, parameters)}"
            )
        try:
            check_options("masks", mask, {**layer.mask_options, **options})
        except RecipeError as error:
            raise PlanError(f"layer '{name}': {error}") from None
