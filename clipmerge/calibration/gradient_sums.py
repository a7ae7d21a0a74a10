"""Gradients added up over backward passes, parameter by parameter, each dropped as soon as it is added."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from torch import Tensor

from clipmerge.calibration.path import PathWeights


class GradientSums:
    """A weighted sum of gradients, and the slopes of all layers along the task vector.

    Attributes:
        part: Weight of the gradients that are added next.
        totals: The sums by parameter; float64 where there is one, so that masks rank the same entries for any number
            of processes.
    """

    def __init__(self, path: PathWeights) -> None:
        """Start at zero.

        Args:
            path: The weights.
        """
        self.part = 0.0
        self._path = path
        self._layers = {name: place for place, names in enumerate(path.layers.values()) for name in names}
        device = next(iter(path.task_vector.values())).device
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.totals = {name: torch.zeros_like(value, dtype=wide) for name, value in path.task_vector.items()}
        self._slopes = torch.zeros(len(path.layers), dtype=torch.float64)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Add up the gradients of all backward passes in this context."""
        self._path.clear_gradients()
        with ExitStack() as hooks:
            for name in self._layers:
                parameter = self._path.parameters[name]
                handle = parameter.register_post_accumulate_grad_hook(self._add(name))  # type: ignore[no-untyped-call]
                hooks.callback(handle.remove)
            yield

    def _add(self, name: str) -> Callable[[Tensor], None]:
        task_vector = self._path.task_vector[name].flatten()

        def hook(parameter: Tensor) -> None:
            gradient = cast(Tensor, parameter.grad)  # the hook runs after it was added
            self._slopes[self._layers[name]] += float(torch.dot(gradient.flatten(), task_vector))
            self.totals[name].add_(gradient, alpha=self.part)
            parameter.grad = None

        return hook

    def take(self) -> Tensor:
        """The slopes since they were last taken: one per layer, in nats, float64 on the CPU."""
        slopes, self._slopes = self._slopes, torch.zeros_like(self._slopes)
        return slopes
