"""What a measure found: statistics per layer, the loss along the path, and its own checks."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from clipmerge.planning.frozen import Frozen


class LossPath(Frozen):
    """Calibration loss along the straight path theta(alpha) = theta_0 + alpha * task_vector.

    Attributes:
        alphas: Points on the path, ascending, 0, 0.5 and 1 among them.
        losses: Mean cross-entropy there, in nats.
    """

    alphas: tuple[float, ...]
    losses: tuple[float, ...]


class Check(Frozen):
    """A self-test of an attribution: the layers' shares against the whole, measured independently.

    Attributes:
        sum_of_layers: Sum over the layers.
        measured: The same quantity from forward passes alone.
    """

    sum_of_layers: float
    measured: float

    @property
    def relative_error(self) -> float:
        """|sum - measured| / |measured|; infinite when only the latter is zero."""
        gap = abs(self.sum_of_layers - self.measured)
        if gap == 0:
            return 0.0
        return gap / abs(self.measured) if self.measured else float("inf")


class Mixture(Frozen):
    """A mixture theta_0 + sum_i weights_i * (theta_i - theta_0) of the checkpoints, tried on the calibration images.

    Attributes:
        weights: One factor a fine-tuned checkpoint.
        loss: Mean cross-entropy, in nats.
        accuracy: Share of the images recognised.
    """

    weights: tuple[float, ...]
    loss: float
    accuracy: float


class Measurements(Frozen):
    """What one measure found.

    Attributes:
        measure: Name of the measure.
        layers: Layer to statistic to value.
        batches: Statistic to layer to one value a calibration batch, for the bootstrap.
        batch_sizes: Images in each of those batches.
        path: Loss along the path, where the measure walks it.
        mixtures: The mixtures tried, in order, by measures that try some.
        checks: Self-tests by statistic.
        notes: What the user should know, one line each.
        trace: What a measure that learns saw at every step, by name.
        coefficients: Parameter to its learned coefficients, float32 on the CPU; never part of the JSON.
        gradients: Parameter to its mean gradient along the path, float32 on the CPU; never part of the JSON.
        tensors: Other tensors, by statistic and parameter, float32 on the CPU; never part of the JSON.
    """

    measure: str
    layers: dict[str, dict[str, float]]
    batches: dict[str, dict[str, tuple[float, ...]]] = Field(default_factory=dict)
    batch_sizes: tuple[int, ...] = ()
    path: LossPath | None = None
    mixtures: tuple[Mixture, ...] = ()
    checks: dict[str, Check] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trace: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    coefficients: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)
    gradients: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)
    tensors: dict[str, dict[str, Any]] = Field(default_factory=dict, exclude=True, repr=False)
