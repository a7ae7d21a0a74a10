"""Adam on numbers between 0 and a ceiling, with one second moment per tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Adam's usual decay rates of the gradient and its square, and what keeps a quotient finite.
_MEMORY, _LONG_MEMORY, _TINY = 0.9, 0.999, 1e-8
# Tensors with at least this many entries keep their first moment in bfloat16: it averages noise
# that is far larger than the rounding.
_MANY = 1 << 16


class BoxAdam(torch.optim.Optimizer):
    """Adam in the box, with one second moment for all coefficients of a parameter.

    With its own second moment, a coefficient whose gradient is mostly noise would move as far as
    those that matter. With a shared one it takes a small step.

    Attributes:
        values: The numbers, by name.
        fall: Factor of the step sizes, set before every step.
        steps_taken: Steps taken so far.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        lr: float,
        max_value: float,
        units: Mapping[str, float],
    ) -> None:
        """Start with zero moments; ``units`` are factors of the step size by name, 1 by default."""
        super().__init__(list(values.values()), {})
        self.values = dict(values)
        self.fall = 1.0
        self.steps_taken = 0
        self._lr = {name: lr * units.get(name, 1.0) for name in values}
        self._max_value = max_value
        self._first = {
            name: torch.zeros_like(
                value, dtype=torch.bfloat16 if value.numel() >= _MANY else value.dtype
            )
            for name, value in values.items()
        }
        self._second = {name: value.new_zeros(()) for name, value in values.items()}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step, and clamp to [0, ceiling]."""
        self.steps_taken += 1
        for name, value in self.values.items():
            if value.grad is None:
                continue
            first = self._first[name].to(value.dtype).lerp_(value.grad, 1 - _MEMORY)
            self._first[name].copy_(first)
            second = self._second[name].lerp_(value.grad.square().mean(), 1 - _LONG_MEMORY)
            scale = (second / (1 - _LONG_MEMORY**self.steps_taken)).sqrt() + _TINY
            move = first / (scale * (1 - _MEMORY**self.steps_taken))
            value.sub_(move, alpha=self._lr[name] * self.fall).clamp_(0, self._max_value)

    def state_dict(self) -> dict[str, Any]:
        """What goes on from here: the numbers, their moments and the number of steps."""
        parts = {"values": self.values, "first": self._first, "second": self._second}
        return {**parts, "steps_taken": self.steps_taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what another one ended with, in place."""
        for part, tensors in (
            ("values", self.values),
            ("first", self._first),
            ("second", self._second),
        ):
            for name, tensor in tensors.items():
                tensor.copy_(state[part][name])
        self.steps_taken = state["steps_taken"]
