"""Gradient descent on numbers between 0 and a ceiling: Adam with one second moment per tensor, and
the scale of gradients in float16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from clipmerge.errors import MeasureError
from clipmerge.learning.weights import LARGE, bucketed, copy_each

# Adam's decay rates of the gradient and its square, and the constant that keeps a quotient finite.
_MEMORY, _LONG_MEMORY, _TINY = 0.9, 0.999, 1e-8

# Tensors with at least this many entries keep their first moment in bfloat16.
_MANY = 1 << 16


# The scale of gradients in float16 with which `torch.amp.GradScaler` starts, too.
_FIRST_SCALE = 2.0**16


class LossScale:
    """The factor of a loss whose gradients pass through float16: halved whenever one overflows,
    like `torch.amp.GradScaler`'s, after which the same step is computed again.

    Attributes:
        value: The factor, a power of two; a number of the CPU.
    """

    def __init__(self) -> None:
        """Start as large as GradScaler."""
        self.value = torch.tensor(_FIRST_SCALE)

    @torch.no_grad()
    def unscale(self, gradients: list[Tensor]) -> bool:
        """Divide gradients by the factor, in place; if any is not finite, halve the factor instead
        and return false.

        Raises:
            MeasureError: If gradients overflow without a factor, too.
        """
        if bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all()):
            torch._foreach_mul_(gradients, 1 / float(self.value))
            return True
        if self.value <= 1:
            raise MeasureError(
                "gradients are too large for float16; compute with measure.precision=float32"
            )
        self.value /= 2
        return False


class Descent:
    """Adam in the box, with one second moment for all coefficients of a parameter.

    With its own second moment, a coefficient whose gradient is mostly noise would move as far as
    those that matter. With a shared one it takes a small step.

    Attributes:
        steps_taken: Steps taken so far, int64.
    """

    def __init__(
        self, values: Mapping[str, Tensor], rate: float | Mapping[str, float], steps: int
    ) -> None:
        """Start with zero moments."""
        self._values = values
        self._rates = rate if isinstance(rate, Mapping) else dict.fromkeys(values, rate)
        self._steps = steps
        self.steps_taken = torch.zeros((), dtype=torch.int64)
        # bfloat16 where they take much memory: first moments average noise that is far larger than
        # its rounding
        dtypes = {
            key: torch.bfloat16 if value.numel() >= _MANY else value.dtype
            for key, value in values.items()
        }
        self._first = {
            key: torch.zeros_like(value, dtype=dtypes[key]) for key, value in values.items()
        }
        self._at_once = next(iter(values.values())).device.type != "cpu"
        # numbers that the CPU computes with: by tensor, and all of them
        self._seconds = torch.zeros(len(values))
        self._second = dict(zip(values, self._seconds.unbind(), strict=True))

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors of the state, by name: filled with the content of another descent, this one
        continues it.
        """
        parts = {"value": self._values, "first": self._first, "second": self._second}
        return {"taken": self.steps_taken} | {
            f"{part}:{key}": tensors[key] for part, tensors in parts.items() for key in tensors
        }

    @torch.no_grad()
    def step(self, ceiling: float = 1.0) -> None:
        """Take a step, and clamp to [0, ceiling]."""
        number = int(self.steps_taken)
        fall = (1 + math.cos(math.pi * number / self._steps)) / 2
        number += 1
        self.steps_taken.fill_(number)
        if self._at_once:
            self._step_at_once(number, fall, ceiling)
            return
        for key, value in self._values.items():
            if value.grad is None:
                continue
            first = self._first[key].to(value.dtype).lerp_(value.grad, 1 - _MEMORY)
            self._first[key].copy_(first)
            second = self._second[key].lerp_(value.grad.square().mean(), 1 - _LONG_MEMORY)
            scale = (second / (1 - _LONG_MEMORY**number)).sqrt() + _TINY
            move = first / (scale * (1 - _MEMORY**number))
            value.sub_(move, alpha=self._rates[key] * fall).clamp_(0, ceiling)

    def _step_at_once(self, number: int, fall: float, ceiling: float) -> None:
        """The same step with one kernel for many tensors, and one wait for all second moments."""
        reached = {key: value for key, value in self._values.items() if value.grad is not None}
        norms = torch.stack(
            torch._foreach_norm([cast(Tensor, value.grad) for value in reached.values()])
        ).cpu()
        counts = torch.tensor([value.numel() for value in reached.values()])
        indices = torch.tensor([key in reached for key in self._values]).nonzero().flatten()
        seconds = self._seconds[indices].lerp_(norms.square() / counts, 1 - _LONG_MEMORY)
        self._seconds[indices] = seconds
        scales = (seconds / (1 - _LONG_MEMORY**number)).sqrt() + _TINY
        rates = fall * torch.tensor([self._rates[key] for key in reached])
        factors = dict(
            zip(reached, (rates / (scales * (1 - _MEMORY**number))).tolist(), strict=True)
        )
        for keys in bucketed(reached, lambda key: reached[key].numel(), LARGE):
            values, firsts = [reached[key] for key in keys], [self._first[key] for key in keys]
            moves = [torch.empty_like(value) for value in values]
            copy_each(moves, firsts)
            torch._foreach_lerp_(moves, [cast(Tensor, value.grad) for value in values], 1 - _MEMORY)
            copy_each(firsts, moves)
            torch._foreach_mul_(moves, [factors[key] for key in keys])
            torch._foreach_sub_(values, moves)
            torch._foreach_clamp_min_(values, 0.0)
            torch._foreach_clamp_max_(values, ceiling)
