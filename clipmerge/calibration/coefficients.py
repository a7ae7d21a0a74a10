"""Coefficients in a box: theta_0 + c * task_vector, one c per layer, parameter, output channel or entry.

The gradient of a coefficient is the sum of gradient * task_vector over the entries that it stands for, so one
backward pass serves every granularity.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from clipmerge.calibration.objective import Objective
from clipmerge.planning.tensors import rows_shape

#: All of the way from the start to the coefficients, and none of that beyond them.
UNMOVED = (1.0, 0.0)
Granularity = Literal["layer", "parameter", "channel", "entry"]

# Standard deviation of the noise that tells equal scores of a sparse parameter apart before anything is learned.
_SPREAD = 0.02


class Coefficients:
    """Coefficients in [0, 1], dense or sparse.

    A sparse parameter has a *score* for each coefficient. `place` uses the scores of the largest share as they are
    and zero for all others, so that an entry that is dropped is the zero-shot model's, bit for bit. Its score still
    moves by the gradient at the placed value (straight-through), and can win its place back.

    Attributes:
        values: Coefficients, scores where sparse, by parameter or layer; float32 on the objective's device.
        start: The coefficient with which learning begins.
        started: Whether `fill` or the constructor has set it.
    """

    def __init__(self, objective: Objective, granularity: Granularity, start: float | None = None) -> None:
        """Start with one coefficient everywhere.

        Args:
            objective: Its weights are set by `place`.
            granularity: What has a coefficient of its own.
            start: The coefficient to begin with; ``None`` leaves it to `learn`.
        """
        self._objective = objective
        self.started = start is not None
        whole = granularity in ("layer", "parameter")
        self._key = {
            name: layer if granularity == "layer" else name
            for layer, names in objective.layers.items()
            for name in names
        }
        self._kept: dict[str, int] = {}
        self._moved = UNMOVED
        self.start = start or 0.0
        self.values: dict[str, Tensor] = {}
        for name, key in self._key.items():
            task_vector = objective.task_vector[name]
            shape = tuple(task_vector.shape)
            if granularity == "channel":
                shape = rows_shape(shape)
            self.values[key] = torch.full(() if whole else shape, start or 0.0, device=task_vector.device)

    def begin_at(self, start: float) -> None:
        """Say where learning began, without changing a coefficient."""
        self.started, self.start = True, start

    def fill(self, value: float) -> None:
        """Begin with this coefficient everywhere."""
        self.begin_at(value)
        for values in self.values.values():
            values.fill_(value)

    def flatten(self, value: float) -> None:
        """End with this coefficient everywhere: nothing is dropped any more."""
        self._kept.clear()
        self._moved = UNMOVED
        self.fill(value)

    def make_sparse(self, names: Iterable[str], density: float) -> None:
        """Let these parameters keep a share of their coefficients, the others being zero. Single numbers stay dense.

        Args:
            names: Parameters.
            density: Share that is kept, in (0, 1], rounded down; at least one is.
        """
        for key in dict.fromkeys(self._key[name] for name in names):
            count = self.values[key].numel()
            if count > 1 and density < 1:
                self._kept[key] = max(1, int(density * count))

    def disturb(self, seed: int) -> None:
        """Add a little noise to the scores, which are equal at the start, so that no order of entries decides.

        Args:
            seed: The same seed disturbs alike on any device.
        """
        generator = torch.Generator().manual_seed(seed)
        for key in self._kept:
            value = self.values[key]
            value.add_(_SPREAD * torch.randn(value.shape, generator=generator).to(value)).clamp_(0, 1)

    def placed(self, key: str) -> Tensor:
        """The coefficients that `place` uses, of one parameter or layer, in the shape of its ``values``."""
        value = self.values[key]
        if key not in self._kept and self._moved == UNMOVED:
            return value
        part, beyond = self._moved
        moved = torch.lerp(torch.full_like(value, self.start), value, part)
        moved = torch.lerp(moved, torch.ones_like(value), beyond)
        return moved.where(_largest(value, self._kept[key]), 0.0) if key in self._kept else moved

    def move(self, part: float, beyond: float = 0.0) -> None:
        """Go only a part of the way from the start to the coefficients, and on from there towards the fine-tuned model.

        Coefficients that are dropped stay dropped. Neither lasts: the next `move` begins at the coefficients again.

        Args:
            part: Share of the way from the start; 1 for the coefficients themselves.
            beyond: Share of the way from there to 1.
        """
        self._moved = (part, beyond)

    @torch.no_grad()
    def place(self) -> None:
        """Set the model's weights to theta_0 + c * task_vector."""
        objective = self._objective
        for name, key in self._key.items():
            theta_0, task_vector = objective.theta_0[name], objective.task_vector[name]
            torch.addcmul(theta_0, task_vector, self.placed(key), out=objective.parameters[name].data)
        objective.forget(text=objective.text_changes)

    @torch.no_grad()
    def set_gradients(self) -> None:
        """Turn the weights' gradients into those of the coefficients, and clear them."""
        for value in self.values.values():
            value.grad = None
        for name, key in self._key.items():
            value = self.values[key]
            slope = (self._objective.gradient_of(name) * self._objective.task_vector[name]).sum_to_size(value.shape)
            value.grad = slope if value.grad is None else value.grad + slope
            self._objective.parameters[name].grad = None

    def by_parameter(self) -> dict[str, Tensor]:
        """The coefficients that `place` uses, by parameter, float32 on the CPU."""
        return {name: self.placed(key).detach().clone().cpu() for name, key in self._key.items()}

    @property
    def sparse(self) -> tuple[str, ...]:
        """Parameters and layers that drop coefficients."""
        return tuple(self._kept)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Which are the largest, exactly so many; of equal ones the first.

    Args:
        scores: Any shape.
        count: How many.

    Returns:
        Booleans, same shape.

    Example:
        >>> _largest(torch.tensor([0.5, 1.0, 0.2, 0.5]), 2)
        tensor([ True,  True, False, False])
    """
    flat = scores.flatten()
    limit = flat.kthvalue(flat.numel() - count + 1).values
    above = flat > limit
    ties = flat == limit
    return (above | (ties & (ties.cumsum(0) <= count - above.sum()))).view(scores.shape)
