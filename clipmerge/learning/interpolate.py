"""Move a model's weights between checkpoints, in place, and compute gradients of coefficients.

The weights are theta_0 + c * (theta_1 - theta_0) for coefficients c.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from clipmerge.checkpoint import Inputs
from clipmerge.errors import CheckpointError
from clipmerge.files.safetensors import require_finite
from clipmerge.files.writer import tensors_in_memory
from clipmerge.layers import HEAD
from clipmerge.merging.stream import merged_tensors
from clipmerge.models import ImageTextModel
from clipmerge.planning.plan import Plan, rows_shape
from clipmerge.types import Layers, OutputDtype

#: The alpha that WiSE-FT recommends without tuning (Wortsman et al. 2022).
DEFAULT_ALPHA = 0.5
Granularity = Literal["layer", "parameter", "channel", "entry"]
# Standard deviation of the noise that breaks ties between the scores of a sparse parameter.
# Learning moves a score much further.
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
        layers: Names of the changed parameters by layer; layers without any are left out.
        names: Names of the changed parameters.
        text_changes: Whether fine-tuning changed the text tower.
        class_moves: Number of changes of parameters in the text tower or the head. Each makes
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
        changed = set()
        for name, parameter in self.parameters.items():
            theta_0, *others = self._ends[name]
            differs = any(not torch.equal(theta_0, end) for end in others)
            parameter.requires_grad_(differs)
            if differs:
                changed.add(name)
                self._ends[name] = [end.to(device) for end in self._ends[name]]
        found = {
            layer: tuple(name for name in names if name in changed)
            for layer, names in inputs.layers.items()
        }
        self.layers: Layers = {layer: names for layer, names in found.items() if names}
        self.names = [name for names in self.layers.values() for name in names]
        self.text_changes = any(layer.startswith("text.") for layer in self.layers)
        self.class_moves = 0
        # whether weights that fine-tuning did not change may differ from theta_0
        self._is_elsewhere = False

    def _keep_ends(self, name: str) -> Tensor:
        """Store a parameter's theta_0 and, if it is merged, theta_1 to theta_K, in the dtypes of
        their files. Return theta_0.

        A head that only the fine-tuned checkpoint has is used as theta_0, too.
        """
        inputs = self.inputs
        has_it = name in inputs.zeroshot_keys
        ends = [inputs.theta_0(name) if has_it else inputs.theta_1(name)]
        if inputs.merges(name):
            for which, checkpoint in enumerate(inputs.finetuned):
                end = inputs.theta_1(name, which=which)
                require_finite(end, name, checkpoint.source)
                ends.append(end)
        # Apple's devices lack float64
        self._ends[name] = [end.float() if end.dtype == torch.float64 else end for end in ends]
        return self._ends[name][0]

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

    @torch.no_grad()
    def set_coefficients(self, coefficient_of: Callable[[str], Tensor]) -> None:
        """Set the weights to theta_0 + c * (theta_1 - theta_0); c broadcasts to its parameter."""
        for name in self.names:
            theta_0, theta_1 = self._ends[name][:2]
            weights = self.parameters[name].data
            torch.lerp(theta_0.float(), theta_1.float(), coefficient_of(name), out=weights)

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
        """Set the weights to those of another checkpoint. Weights that it lacks are zero-shot."""
        self._is_elsewhere = True
        for name, (theta_0, *_) in self._ends.items():
            value = other.theta_1(name) if other.merges(name) else theta_0
            self._set_parameter(name, self._rounded(name, value))

    def _rounded(self, name: str, value: Tensor) -> Tensor:
        """Round a value to the path's dtype."""
        kept = self._ends[name][0].dtype
        return value.to(kept if self.dtype == "keep" else getattr(torch, self.dtype))

    def _set_parameter(self, name: str, value: Tensor) -> None:
        """Set a parameter of the model, and count changes that class features depend on."""
        weights = self.parameters[name].data
        value = value.to(weights)
        # on a GPU, a comparison would wait for all earlier computations
        if weights.device.type != "cpu" or not torch.equal(weights, value):
            weights.copy_(value)
            layer = self.inputs.layer_of[name]
            self.class_moves += layer.startswith("text.") or layer == HEAD

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
    """Compute theta_0 + sum_i weights_i * (theta_i - theta_0), float32, rounded as in `merging`."""
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

    A sparse parameter has *scores*. The largest scores are its coefficients. All other coefficients
    are zero, so that these entries are the zero-shot model's, bit for bit. Gradients still change
    the score of a dropped entry (straight-through), so the entry can return.

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
                whole = path.parameters[name].shape
                shape = {"entry": whole, "channel": rows_shape(whole)}.get(granularity, ())
                key = layer if granularity == "layer" else name
                self._key[name] = key
                self.values[key] = torch.full(shape, start, device=path.device)

    def make_sparse(self, names: Iterable[str], density: float, seed: int) -> None:
        """Let parameters keep only a share of their coefficients; scalars stay dense.

        Scores start equal, so a little noise decides which entries are kept at first. The
        granularity is ``channel`` or ``entry``.
        """
        generator = torch.Generator().manual_seed(seed)
        for name in names:
            value = self.values[name]
            if value.numel() > 1 and density < 1:
                self._kept[name] = max(1, int(density * value.numel()))
                noise = _SPREAD * torch.randn(value.shape, generator=generator)
                value.add_(noise.to(value.device)).clamp_min_(0)

    def effective(self, key: str, backoff: float = 0.0) -> Tensor:
        """Compute the coefficients of a parameter or layer, moved a share of the way to the
        fine-tuned model.

        The same share of the dropped coefficients returns, highest scores first. The whole way
        therefore ends at the fine-tuned model.
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
        with ExitStack() as hooks:
            for name in self._key:
                parameter = self._path.parameters[name]
                add = partial(self._add_slope, name)
                hook = parameter.register_post_accumulate_grad_hook(add)  # type: ignore[no-untyped-call]
                hooks.callback(hook.remove)
            yield

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
