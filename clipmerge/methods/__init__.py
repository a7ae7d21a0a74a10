"""Methods that choose coefficients and masks, one file per method.

A method is a function of a `Task` that returns a `Decision`; its keyword-only parameters are its
options. `run_method` adds the method's name to its `UsageError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from clipmerge.checkpoint import Inputs
from clipmerge.errors import UsageError
from clipmerge.files.safetensors import Array
from clipmerge.merging.stream import read_parameter
from clipmerge.planning.measurements import Measurements
from clipmerge.planning.plan import Combination, LayerPlan, with_coefficients
from clipmerge.plugins import load_plugin
from clipmerge.types import Json, Layers, Names, Shape


@dataclass(frozen=True)
class Task:
    """The input of a method.

    Attributes:
        inputs: The checkpoints; most methods do not read their weights.
        measurements: The result of the recipe's measure; ``None`` for data-free recipes.
        seed: Seed of the run.
    """

    inputs: Inputs
    measurements: Measurements | None = None
    seed: int = 0

    @property
    def layers(self) -> Layers:
        """Mergeable parameters by layer, in network order, without empty layers."""
        return self.inputs.merged_layers

    @property
    def sizes(self) -> dict[str, int]:
        """Number of entries by layer."""
        return {
            layer: sum(self.inputs.zeroshot_entry(name).size for name in names)
            for layer, names in self.layers.items()
        }

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of the mergeable parameters."""
        return {
            name: self.inputs.zeroshot_entry(name).shape
            for names in self.layers.values()
            for name in names
        }

    def everywhere(self, alpha: float) -> dict[str, LayerPlan]:
        """Return settings by layer that give every layer the same coefficient."""
        return dict.fromkeys(self.layers, LayerPlan(alpha=alpha))

    def combined(
        self,
        alpha: float,
        mask: str,
        density: float,
        options: Json | None = None,
        *,
        elect_signs: bool = False,
    ) -> Decision:
        """Return a decision: one coefficient for every layer, and a mask for each task vector."""
        combination = Combination(
            mask=mask, density=density, mask_options=options or {}, elect_signs=elect_signs
        )
        return Decision(
            self.everywhere(alpha),
            weights=(1.0,) * len(self.inputs.finetuned),
            combine=combination,
        )

    @property
    def uniform_weights(self) -> tuple[float, ...]:
        """Equal weights with sum 1, which average the task vectors."""
        count = len(self.inputs.finetuned)
        return (1.0 / count,) * count

    def task_vectors(self, name: str) -> list[Array]:
        """Compute theta_i - theta_0 of a parameter for each fine-tuned checkpoint: float64, in the
        parameter's shape, or (1,) for a scalar.

        Raises:
            CheckpointError: If a weight is NaN or infinite.
        """
        ends = [values.astype(np.float64) for values in read_parameter(self.inputs, name)]
        theta_0, *finetuned = ends
        return [theta_i - theta_0 for theta_i in finetuned]

    def need_several_finetuned(self, instead: str) -> None:
        """Raise an error if there is only one fine-tuned checkpoint.

        Args:
            instead: End of the error message, which names the other method.

        Raises:
            UsageError: If there is only one.
        """
        if len(self.inputs.finetuned) < 2:
            raise UsageError(f"needs at least two fine-tuned checkpoints; with one, {instead}")

    def need_measured(
        self, what: str, measure: str, is_measured: Callable[[Measurements], object]
    ) -> Measurements:
        """Return the measurements, if they contain what the method needs; else raise an error.

        Args:
            what: The needed measurement, in words for the error message.
            measure: The measure that gives it.
            is_measured: Returns whether measurements contain it.

        Raises:
            UsageError: If it was not measured.
        """
        if self.measurements is None or not is_measured(self.measurements):
            raise UsageError(f"needs {what}; set `measure.name` to {measure} in the recipe")
        return self.measurements


@dataclass(frozen=True)
class Decision:
    """The result of a method.

    Attributes:
        layers: The settings of each layer.
        found: The reason for the whole decision, a sentence without its full stop, or empty.
        reasons: Reasons for the settings of single layers, by layer.
        weights: One factor per fine-tuned checkpoint.
        combine: How task vectors are masked before they are added up; ``None`` adds them up
            unmasked.
        stragglers: The straggler layers.
        straggler_statistic: Statistic by which stragglers are found; ``None`` if the method looks
            for none.
        straggler_scores: Scores of stragglers by layer.
        scores: Scores by parameter, for masks that need them.
        coefficients: Coefficients by parameter, which replace the layer's alpha: one number, one
            per row (shape (rows, 1, ...)) or one per entry. The plan shows each layer's mean and
            range.
    """

    layers: dict[str, LayerPlan]
    found: str = ""
    reasons: dict[str, str] = field(default_factory=dict)
    weights: tuple[float, ...] = (1.0,)
    combine: Combination | None = None
    stragglers: Names = ()
    straggler_statistic: str | None = None
    straggler_scores: dict[str, dict[str, float]] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    coefficients: Mapping[str, Any] = field(default_factory=dict)


def run_method(task: Task, section: Json) -> Decision:
    """Run the method that a recipe's section names. Its errors begin with the method's name."""
    options = dict(section)
    method = options.pop("name")
    try:
        decision: Decision = load_plugin("methods", method)(task, **options)
    except UsageError as error:
        raise UsageError(f"method {method}: {error}") from None
    scores = _as_arrays(decision.scores)
    coefficients = _as_arrays(decision.coefficients)
    # a layer shows the mean and the range of its coefficients
    layers = with_coefficients(decision.layers, coefficients, task.layers, task.shapes)
    return replace(decision, layers=layers, scores=scores, coefficients=coefficients)


def _as_arrays(tensors: Mapping[str, Any]) -> dict[str, Array]:
    """Convert tensors on the CPU, of torch or numpy, to float32 arrays."""
    return {name: np.asarray(values, np.float32, order="C") for name, values in tensors.items()}
