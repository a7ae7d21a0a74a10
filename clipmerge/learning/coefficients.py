"""Bounded coefficients: theta_0 + c * task_vector, one c per layer, parameter, output channel or
entry.

The gradient of a coefficient is the sum of gradient * task_vector over its entries, so one backward
pass serves every granularity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor

from clipmerge.learning.objective import Objective
from clipmerge.learning.weights import (
    DEFAULT_ALPHA,
    LARGE,
    bucketed,
    row_chunks,
    rows_of,
)
from clipmerge.planning.plan import rows_shape

Granularity = Literal["layer", "parameter", "channel", "entry"]

# Entries that are sent to other processes at once: 25 MB.
_BUCKET = 25_000_000 // 4
# Standard deviation of the noise that breaks ties between the scores of a sparse parameter before
# learning.
_SPREAD = 0.02


class Coefficients:
    """Coefficients from 0 to a ceiling, dense or sparse.

    A sparse parameter has a *score* for each coefficient. `place` uses the largest scores as
    coefficients and zero for all others, so that a dropped entry is the zero-shot model's, bit for
    bit. Its score keeps following the gradient at the effective value (straight-through), so the
    entry can return.

    Attributes:
        values: Coefficients (scores of sparse parameters) by parameter or layer; float32 on the
            objective's device.
        start: The initial coefficient.
    """

    def __init__(
        self, objective: Objective, granularity: Granularity, start: float = DEFAULT_ALPHA
    ) -> None:
        """Start with one coefficient everywhere."""
        self._objective = objective
        self.start = start
        self._key = {
            name: layer if granularity == "layer" else name
            for layer, names in objective.weights.layers.items()
            for name in names
        }
        self._sparse_counts: dict[str, int] = {}
        self._extrapolation = 0.0
        # whether weights have given their memory to gradients, and weights whose gradients have not
        # got it yet
        self._overwritten = False
        self._waiting: list[str] = []
        self.values: dict[str, Tensor] = {}
        for name, key in self._key.items():
            task_vector = objective.weights.task_vector[name]
            shape = {"entry": task_vector.shape, "channel": rows_shape(task_vector.shape)}.get(
                granularity, ()
            )
            self.values[key] = torch.full(shape, start, device=task_vector.device)

    def fill(self, coefficient: float) -> None:
        """Set all coefficients to one value; no entry is dropped any more."""
        self._sparse_counts.clear()
        self._extrapolation = 0.0
        for values in self.values.values():
            values.fill_(coefficient)

    def make_sparse(self, names: Iterable[str], density: float) -> None:
        """Make parameters keep only a share of their coefficients and zero the others. Scalars stay
        dense.
        """
        for key in dict.fromkeys(self._key[name] for name in names):
            count = self.values[key].numel()
            if count > 1 and density < 1:
                self._sparse_counts[key] = max(1, int(density * count))

    def add_noise(self, seed: int) -> None:
        """Add a little noise to the scores, which start equal, so that the order of entries does
        not matter.
        """
        generator = torch.Generator().manual_seed(seed)
        for key in self._sparse_counts:
            value = self.values[key]
            value.add_(
                _SPREAD * torch.randn(value.shape, generator=generator).to(value)
            ).clamp_min_(0)

    def effective_coefficients(self, key: str) -> Tensor:
        """The coefficients used by `place` for one parameter or layer, in the shape of its
        ``values``.
        """
        value = self.values[key]
        if key not in self._sparse_counts and not self._extrapolation:
            return value
        moved = torch.lerp(value, torch.ones_like(value), self._extrapolation)
        if key not in self._sparse_counts:
            return moved
        count = self._sparse_counts[key]
        count += int(self._extrapolation * (value.numel() - count))
        return moved.where(_largest(value, count), 0.0)

    def extrapolate(self, share: float) -> None:
        """Go a share of the way from the coefficients to the fine-tuned model's.

        The same share of the dropped coefficients returns, those with the highest scores first, so
        that the way ends at the fine-tuned model. Moves do not add up: each one starts from the
        learned coefficients.
        """
        self._extrapolation = share

    def distance(self) -> float:
        """Euclidean distance of the coefficients used by `place` from the fine-tuned model's."""
        squares = [
            (1 - self.effective_coefficients(key)).square().sum(dtype=torch.float64)
            for key in self.values
        ]
        return math.sqrt(float(torch.stack(squares).sum()))

    @torch.no_grad()
    def place(self) -> None:
        """Set the model's weights to theta_0 + c * task_vector."""
        weights = self._objective.weights
        weights.set_coefficients(
            lambda name: self.effective_coefficients(self._key[name]), self._key
        )
        self._overwritten = False

    @contextmanager
    def collect_gradients(self) -> Iterator[None]:
        """Turn gradients of weights into those of coefficients during one backward pass, and drop
        the former.

        A weight that has its gradient is not needed again before the next `place`: where every
        entry has its own coefficient, their gradients take the weights' memory, and the weights are
        gone. `place` sets them again, and so does this where it was not called in between.
        Gradients that weights have before are part of the sum. A coefficient that no pass reaches
        has no gradient.
        """
        self.drop_gradients()
        if self._overwritten:
            self.place()
        with ExitStack() as hooks:
            for name in self._key:
                parameter = self._objective.weights.parameters[name]
                add = partial(self._add_slope, name)
                handle = parameter.register_post_accumulate_grad_hook(add)  # type: ignore[no-untyped-call]
                hooks.callback(handle.remove)
            yield
            self._move_waiting_gradients()

    def all_reduce_(self, copies: int = 1) -> None:
        """Add up the gradients of the coefficients over all processes, many small ones at once.

        Where each process computed all of them, they are divided by the number of these ``copies``:
        processors may round differently, and without it each process would go on from its own.
        """
        if self._objective.data.context.world_size == 1:
            return
        for bucket in bucketed(self.gradients, Tensor.numel, _BUCKET):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            self._objective.data.all_reduce_(flat)
            flat /= copies
            for tensor, total in zip(
                bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True
            ):
                tensor.copy_(total.view_as(tensor))

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients of all coefficients that a pass reached."""
        return [value.grad for value in self.values.values() if value.grad is not None]

    def drop_gradients(self) -> None:
        """Give back the memory of the coefficients' gradients."""
        self._waiting.clear()
        for value in self.values.values():
            value.grad = None

    @torch.no_grad()
    def _add_slope(self, name: str, parameter: Tensor) -> None:
        """Add a weight's part to the gradient of its coefficient, and drop the weight's
        gradient.
        """
        value = self.values[self._key[name]]
        gradient = cast(Tensor, parameter.grad)  # the hook runs after it was added
        takes_over = value.grad is None and value.shape == parameter.shape
        if takes_over and parameter.device.type != "cpu":  # pragma: no cover - torch's thread
            self._waiting.append(name)
            if (
                sum(
                    self._objective.weights.parameters[waiting].numel() for waiting in self._waiting
                )
                >= LARGE
            ):
                self._move_waiting_gradients()
            return
        parameter.grad = None
        if takes_over:
            value.grad = parameter.data
            self._overwritten = True
            for rows in row_chunks(gradient):
                task_vector = self._objective.weights.task_vector.rows(name, rows)
                torch.mul(rows_of(gradient, rows), task_vector, out=rows_of(value.grad, rows))
            return
        for rows in row_chunks(gradient):
            rows_of(gradient, rows).mul_(self._objective.weights.task_vector.rows(name, rows))
        slope = gradient.sum_to_size(value.shape)
        value.grad = slope if value.grad is None else value.grad + slope

    @torch.no_grad()
    def _move_waiting_gradients(self) -> None:
        """On a card, move the gradients of many weights into the weights' memory at once."""
        if not self._waiting:
            return
        self._overwritten = True
        parameters = [self._objective.weights.parameters[name] for name in self._waiting]
        slopes = [parameter.data for parameter in parameters]
        self._objective.weights.copy_task_vectors(self._waiting, slopes)
        torch._foreach_mul_(slopes, [cast(Tensor, parameter.grad) for parameter in parameters])
        for name, parameter, slope in zip(self._waiting, parameters, slopes, strict=True):
            self.values[self._key[name]].grad = slope
            parameter.grad = None
        self._waiting.clear()

    def by_parameter(self) -> dict[str, Tensor]:
        """The coefficients used by `place`, by parameter, float32 on the CPU."""
        return {
            name: self.effective_coefficients(key).detach().clone().cpu()
            for name, key in self._key.items()
        }


def _largest(scores: Tensor, count: int) -> Tensor:
    """Mark exactly ``count`` largest entries; among equal entries, the first ones.

    Example:
        >>> _largest(torch.tensor([0.5, 1.0, 0.2, 0.5]), 2)
        tensor([ True,  True, False, False])
    """
    flat = scores.flatten()
    if scores.device.type == "cpu":
        limit = flat.kthvalue(flat.numel() - count + 1).values
    elif 2 * count <= flat.numel():
        # a card selects from one end with all of its units, and a single one by rank
        limit = flat.topk(count, sorted=False).values.amin()
    else:
        limit = flat.topk(flat.numel() - count + 1, largest=False, sorted=False).values.amax()
    above = flat > limit
    ties = flat == limit
    return (above | (ties & (ties.cumsum(0) <= count - above.sum()))).view(scores.shape)
