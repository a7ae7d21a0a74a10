"""Set a model's weights to theta_0 + c * (theta_1 - theta_0), in place, and compute the gradient of
c.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from clipmerge.checkpoint import Inputs
from clipmerge.errors import CheckpointError
from clipmerge.families import is_variance
from clipmerge.files.safetensors import is_finite, require_finite
from clipmerge.files.writer import tensors_in_memory
from clipmerge.layers import HEAD
from clipmerge.merging.stream import merged_tensors
from clipmerge.models import ImageTextModel
from clipmerge.planning.plan import Plan, rows_shape
from clipmerge.types import Layers, OutputDtype

#: The alpha that WiSE-FT recommends without tuning (Wortsman et al. 2022).
DEFAULT_ALPHA = 0.5
Granularity = Literal["layer", "parameter", "channel", "entry"]
# Standard deviation of the noise that breaks ties between the scores of a sparse parameter: small
# beside the way that a score goes in all steps of learning.
_SPREAD = 0.02


class WeightPath:
    """A model whose weights move between checkpoints, in place.

    With several fine-tuned checkpoints, the path ends at their average.

    Attributes:
        model: The model.
        inputs: The checkpoints.
        device: The device of the model.
        dtype: Weights are rounded to this dtype before they are used; ``keep`` means the dtype of
            the zero-shot checkpoint.
        parameters: The model's parameters by canonical name; those that fine-tuning did not change
            are frozen.
        layers: Names of the changed parameters by layer, without unchanged layers.
        names: Names of the changed parameters.
        text_changes: Whether fine-tuning changed the text tower.
        class_moves: Number of times that the text tower or the head changed; each change makes
            earlier class features invalid.
    """

    def __init__(
        self,
        model: ImageTextModel,
        inputs: Inputs,
        device: torch.device,
        *,
        dtype: OutputDtype = "float32",
    ) -> None:
        """Load the zero-shot weights into the model, and keep the weights of all checkpoints."""
        self.model = model
        self.inputs = inputs
        self.device = device
        self.dtype = dtype
        self._ends: dict[str, list[Tensor]] = {}
        model.load(self._keep_ends, inputs.zeroshot.source)
        model.module.to(device)
        self.parameters = model.parameters
        for name, parameter in self.parameters.items():
            theta_0, *others = self._ends[name]
            changed = any(not torch.equal(theta_0, end) for end in others)
            parameter.requires_grad_(changed)
            if changed:
                self._ends[name] = [end.to(device) for end in self._ends[name]]
        self.layers: Layers = {}
        self.names: list[str] = []
        for layer, names in inputs.layers.items():
            moving = [name for name in names if name in self._ends]
            moving = [name for name in moving if self.parameters[name].requires_grad]
            if moving:
                self.layers[layer] = tuple(moving)
                self.names += moving
        self.text_changes = any(layer.startswith("text.") for layer in self.layers)
        self.class_moves = 0
        # a point elsewhere may have set weights that the path does not move
        self._is_elsewhere = False

    def _keep_ends(self, name: str) -> Tensor:
        """Store a parameter's theta_0 and, if the parameter is merged, theta_1 to theta_K, in the
        dtypes of their files. A head that only the fine-tuned checkpoint has never moves.
        """
        inputs = self.inputs
        has_it = name in inputs.zeroshot_keys
        ends = [inputs.theta_0(name) if has_it else inputs.theta_1(name)]
        if inputs.merges(name):
            for which in range(len(inputs.finetuned)):
                ends.append(inputs.theta_1(name, which=which))
        for end, checkpoint in zip(ends, inputs.checkpoints, strict=False):
            require_finite(end, name, checkpoint.source)
        # Apple's devices lack float64
        self._ends[name] = [end.float() if end.dtype == torch.float64 else end for end in ends]
        return self._ends[name][0]

    def theta_0(self, name: str) -> Tensor:
        """Return the zero-shot value of a parameter, float32."""
        return self._ends[name][0].float()

    def delta(self, name: str) -> Tensor:
        """Compute the task vector of a changed parameter, float32: theta_1 - theta_0."""
        theta_0, theta_1 = self._ends[name][:2]
        return theta_1.float() - theta_0

    # Points

    def set_alpha(self, alpha: float) -> None:
        """Set the weights to theta_0 + alpha * (theta_1 - theta_0)."""
        count = len(self.inputs.finetuned)
        self.set_mixture([alpha / count] * count)

    @torch.no_grad()
    def set_mixture(self, weights: Sequence[float]) -> None:
        """Set the weights to theta_0 + sum_i weights_i * (theta_i - theta_0)."""
        names = list(self.parameters) if self._is_elsewhere else self.names
        self._is_elsewhere = False
        for name in names:
            self._set_parameter(name, self._rounded(name, mix(self._ends[name], weights)))
            if not all(0 <= weight <= 1 for weight in weights):
                self._refuse_overflow(name)

    @torch.no_grad()
    def set_coefficients(self, coefficient_of: Callable[[str], Tensor]) -> None:
        """Set the weights to theta_0 + c * (theta_1 - theta_0); c broadcasts to its parameter."""
        for name in self.names:
            theta_0, theta_1 = self._ends[name][:2]
            weights = self.parameters[name].data
            torch.lerp(theta_0.float(), theta_1.float(), coefficient_of(name), out=weights)
            self._count_move(name)

    def merged_weights(self, plan: Plan) -> Iterator[tuple[str, Tensor]]:
        """Merge by a plan, in memory. Yield each parameter with the weights that `merge` writes."""
        tensors = [
            each for each in merged_tensors(self.inputs, plan) if each.name in self.parameters
        ]
        names = [tensor.name for tensor in tensors]
        return zip(names, tensors_in_memory(tensors), strict=True)

    def set_plan(self, plan: Plan) -> None:
        """Set the weights to those that a merge by this plan writes."""
        self.set_merged(self.merged_weights(plan))

    @torch.no_grad()
    def set_merged(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Set the weights to merged ones, given by parameter."""
        self._is_elsewhere = True
        left = set(self.parameters)
        for name, value in weights:
            self._set_parameter(name, value)
            left.remove(name)
        if left:
            raise CheckpointError(
                f"the merged checkpoint has no {sorted(left)[0]}, so it cannot be evaluated; see"
                " the recipe's `missing`"
            )

    @torch.no_grad()
    def set_checkpoint(self, other: Inputs) -> None:
        """Set the weights to those of another checkpoint; weights that it lacks are zero-shot."""
        self._is_elsewhere = True
        for name in self.parameters:
            value = other.theta_1(name) if other.merges(name) else self._ends[name][0]
            require_finite(value, name, other.finetuned[0].source)
            self._set_parameter(name, self._rounded(name, value))

    def _rounded(self, name: str, value: Tensor) -> Tensor:
        """Round a value to the path's dtype."""
        kept = self._ends[name][0].dtype
        return value.to(kept if self.dtype == "keep" else getattr(torch, self.dtype))

    def _set_parameter(self, name: str, value: Tensor) -> None:
        """Set a parameter of the model, and count the change."""
        weights = self.parameters[name].data
        value = value.to(weights)
        # on a card a comparison would wait for all that is computed there
        if weights.device.type != "cpu" or not torch.equal(weights, value):
            weights.copy_(value)
            self._count_move(name)

    def _count_move(self, name: str) -> None:
        """Count a change of a parameter that class features depend on."""
        layer = self.inputs.layer_of[name]
        if layer.startswith("text.") or layer == HEAD:
            self.class_moves += 1

    def _refuse_overflow(self, name: str) -> None:
        """Raise an error if weights beyond the ends of the path overflow, or variances are
        negative.
        """
        value = self.parameters[name]
        if not is_finite(value.detach()):
            raise CheckpointError(f"tensor {name} overflows here; give `alphas` in [0, 1]")
        if is_variance(name) and bool((value < 0).any()):
            raise CheckpointError(
                f"tensor {name} is a variance and becomes negative here; give `alphas` in [0, 1]"
            )

    # Gradients

    def gradient(self, name: str) -> Tensor:
        """Return a parameter's gradient from the last backward pass; zero if the loss does not
        depend on it.
        """
        gradient = self.parameters[name].grad
        return torch.zeros_like(self.parameters[name]) if gradient is None else gradient

    def clear_gradients(self) -> None:
        """Drop the gradients of the changed parameters."""
        for name in self.names:
            self.parameters[name].grad = None


def mix(ends: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Compute theta_0 + sum_i weights_i * (theta_i - theta_0), float32, as `merging` rounds it."""
    theta_0 = ends[0].float()
    changes = []
    for end, weight in zip(ends[1:], weights, strict=False):
        if weight == 1 and sum(map(bool, weights)) == 1:
            return end.float()
        if weight:
            changes.append((end.float() - theta_0).mul_(weight))
    if not changes:
        return theta_0
    return sum(changes[1:], changes[0]) + theta_0


class Coefficients:
    """Coefficients from 0 up, one per layer, parameter, output channel or entry; dense or sparse.

    A sparse parameter has *scores*. The largest scores are its coefficients, and all other
    coefficients are zero, so that a dropped entry is the zero-shot model's, bit for bit. The score
    of a dropped entry follows the gradient as if it were used (straight-through), so the entry can
    return.

    Attributes:
        values: Coefficients, or scores of sparse parameters, by parameter or layer; float32 on the
            path's device.
    """

    def __init__(
        self, path: WeightPath, granularity: Granularity, start: float = DEFAULT_ALPHA
    ) -> None:
        """Start with one coefficient everywhere."""
        self.values: dict[str, Tensor] = {}
        self._path = path
        self._key: dict[str, str] = {}
        self._kept: dict[str, int] = {}
        for layer, names in path.layers.items():
            for name in names:
                key = layer if granularity == "layer" else name
                shape: tuple[int, ...] = ()
                if granularity == "entry":
                    shape = path.parameters[name].shape
                elif granularity == "channel":
                    shape = rows_shape(path.parameters[name].shape)
                self._key[name] = key
                self.values[key] = torch.full(shape, start, device=path.device)

    def make_sparse(self, names: Iterable[str], density: float, seed: int) -> None:
        """Let parameters keep only a share of their coefficients; scalars stay dense.

        Scores start equal, so a little noise decides which entries are kept at first.
        """
        generator = torch.Generator().manual_seed(seed)
        for key in dict.fromkeys(self._key[name] for name in names):
            value = self.values[key]
            if value.numel() > 1 and density < 1:
                self._kept[key] = max(1, int(density * value.numel()))
                noise = _SPREAD * torch.randn(value.shape, generator=generator)
                value.add_(noise.to(value.device)).clamp_min_(0)

    def effective(self, key: str, backoff: float = 0.0) -> Tensor:
        """Compute the coefficients of a parameter or layer, moved towards the fine-tuned model by a
        share of the way.

        The same share of the dropped coefficients returns, highest scores first, so that the whole
        way ends at the fine-tuned model.
        """
        value = self.values[key]
        moved = torch.lerp(value, torch.ones_like(value), backoff) if backoff else value
        if key not in self._kept:
            return moved
        count = self._kept[key]
        count += int(backoff * (value.numel() - count))
        return moved.where(_mark_largest(value, count), 0.0)

    def set_weights(self, backoff: float = 0.0) -> None:
        """Set the weights to theta(c), moved by the share ``backoff`` of the way to theta_1."""
        self._path.set_coefficients(lambda name: self.effective(self._key[name], backoff))

    def back_off(self, backoff: float) -> None:
        """Change the coefficients by a share of the way to the fine-tuned model."""
        for key in self.values:
            self.values[key] = self.effective(key, backoff).clone()
        self._kept.clear()

    def distance(self, backoff: float = 0.0) -> float:
        """Compute the Euclidean distance of the coefficients from the fine-tuned model's."""
        squares = [(1 - self.effective(key, backoff)).square().sum() for key in self.values]
        # the CPU has float64, which Apple's devices lack
        return math.sqrt(float(torch.stack(squares).cpu().double().sum()))

    @contextmanager
    def collect_gradients(self) -> Iterator[None]:
        """In this block, backward passes add the gradients of coefficients to ``value.grad``, and
        leave no gradients of weights: dL/dc = dL/dtheta * (theta_1 - theta_0).
        """
        handles = []
        for name in self._key:
            parameter = self._path.parameters[name]
            add = partial(self._add_slope, name)
            handles.append(parameter.register_post_accumulate_grad_hook(add))  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _add_slope(self, name: str, parameter: Parameter) -> None:
        """Add dL/dtheta * (theta_1 - theta_0) to the gradient of the coefficient."""
        value = self.values[self._key[name]]
        gradient = parameter.grad
        assert gradient is not None  # the hook runs after it was added
        parameter.grad = None
        slope = gradient.mul_(self._path.delta(name)).sum_to_size(value.shape)
        value.grad = slope if value.grad is None else value.grad.add_(slope)

    def by_parameter(self) -> dict[str, Tensor]:
        """Copy the coefficients of every parameter to the CPU, float32."""
        keys = self._key.items()
        return {name: self.effective(key).detach().clone().cpu() for name, key in keys}


def _mark_largest(scores: Tensor, count: int) -> Tensor:
    """Mark the ``count`` largest entries; of equal entries, the first ones.

    Example:
        >>> _mark_largest(torch.tensor([0.5, 1.0, 0.2, 0.5]), 2)
        tensor([ True,  True, False, False])
    """
    flat = scores.flatten()
    limit = flat.topk(count, sorted=False).values.amin()
    above = flat > limit
    ties = flat == limit
    wanted = count - above.sum()
    first_ties = ties & (ties.cumsum(0) <= wanted)
    return (above | first_ties).view(scores.shape)
