"""Slopes of the loss along the task vector, by layer, from backward passes that compute no gradient of a matrix.

A linear map, a convolution, an embedding, and the scale and shift of a normalisation are linear in their own weights.
So task_vector . gradient is the gradient of such a map's output times its *tangent*: the same map of the same input
with the task vector for weights. The tangent costs as much as the gradient of the weights would, once for any number
of backward passes through the same forward pass, and no gradient as large as the model is ever written.

Apart from the matrix product, a tangent must be written and read, and so must a gradient. Images go backward once, so
where a map's output for the images of one pass is larger than its weights, their gradient is the cheaper of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, embedding, layer_norm, linear

from clipmerge.calibration.path import PathWeights

# An exact type, and what it computes with these weights; subclasses may compute something else.
_MAPS: dict[type, Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]] = {
    torch.nn.Linear: lambda _module, given, weight, bias: linear(given, weight, bias),
    torch.nn.LayerNorm: lambda module, given, weight, bias: layer_norm(
        given, module.normalized_shape, weight, bias, module.eps
    ),
    torch.nn.Conv2d: lambda module, given, weight, bias: conv2d(
        given, weight, bias, module.stride, module.padding, module.dilation, module.groups
    ),
    torch.nn.Embedding: lambda _module, given, weight, _bias: embedding(given, weight),
}


@dataclass(frozen=True)
class _Map:
    """A module that is linear in its weights, and the task vector of its weights."""

    module: torch.nn.Module
    layer: int
    names: tuple[str, ...]
    weight: Tensor
    bias: Tensor | None

    def tangent(self, given: Tensor) -> Tensor:
        """The change of its output for an infinitesimal step along the path, its input held fixed."""
        return _MAPS[type(self.module)](self.module, given, self.weight, self.bias)


class Tangents:
    """Slopes of all layers, added up over backward passes.

    Parameters of other modules (a class token, a logit scale, a fused attention, maps that are smaller than their
    output) get their gradients as usual, and these are multiplied by the task vector.
    """

    def __init__(self, path: PathWeights, module: torch.nn.Module, taken: set[torch.nn.Module]) -> None:
        """Find the modules whose tangents are known."""
        self._path = path
        self._layers = {name: place for place, names in enumerate(path.layers.values()) for name in names}
        names = {id(parameter): name for name, parameter in path.parameters.items() if name in path.task_vector}
        found = (self._map(each, names) for each in module.modules() if each in taken and type(each) in _MAPS)
        self._maps = [each for each in found if each is not None]
        mapped = {name for each in self._maps for name in each.names}
        # read once: a path over mapped files reads them on every access
        self._others = {name: change for name, change in path.task_vector.items() if name not in mapped}
        self._sums = self._zeros()

    def _map(self, module: torch.nn.Module, names: dict[int, str]) -> _Map | None:
        own = {part: names[id(p)] for part, p in module.named_parameters(recurse=False) if id(p) in names}
        if getattr(module, "padding_mode", "zeros") != "zeros":  # a convolution that pads by what is at its edges
            return None
        if "weight" not in own or len({self._layers[name] for name in own.values()}) > 1:
            return None
        changes = {part: self._path.task_vector[name] for part, name in own.items()}
        layer = self._layers[own["weight"]]
        return _Map(module, layer, tuple(own.values()), changes["weight"], changes.get("bias"))

    def _zeros(self) -> Tensor:
        device = next(iter(self._path.task_vector.values())).device
        return torch.zeros(len(self._path.layers), device=device)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """In this context, keep tangents of forward passes, and add up slopes of backward passes through them."""
        frozen = [self._path.parameters[name] for each in self._maps for name in each.names]
        with ExitStack() as hooks:
            for each in self._maps:
                hooks.callback(each.module.register_forward_hook(self._keep(each)).remove)
            for parameter in frozen:
                parameter.requires_grad_(False)
            try:
                yield
            finally:
                for parameter in frozen:
                    parameter.requires_grad_(True)
                self._path.clear_gradients()

    def _keep(self, mapped: _Map) -> Callable[[Any, tuple[Any, ...], Tensor], Tensor | None]:
        def hook(_module: Any, given: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            # no input below the lowest map requires a gradient; copied because the next operation may write in place
            reached = output if output.requires_grad else output.requires_grad_().clone()
            with torch.no_grad():
                tangent = mapped.tangent(given[0].detach())
            reached.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: self._add(mapped.layer, gradient, tangent)
            )
            return reached

        return hook

    def _add(self, layer: int, gradient: Tensor, tangent: Tensor) -> None:
        # a map that does not depend on the batch, such as position embeddings, has one output for all of it
        self._sums[layer] += torch.dot(gradient.reshape(-1), tangent.reshape(-1))

    def take(self) -> Tensor:
        """The slopes since they were last taken: one per layer, in nats, float64 on the CPU."""
        sums, self._sums = self._sums.cpu().double(), self._zeros()
        for name, change in self._others.items():
            gradient = self._path.parameters[name].grad
            if gradient is not None:
                slope = torch.dot(gradient.reshape(-1), change.reshape(-1))
                sums[self._layers[name]] += float(slope)
                self._path.parameters[name].grad = None
        return sums
