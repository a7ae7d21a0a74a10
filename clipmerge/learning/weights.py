"""Interpolated weights: theta_0 + c * task_vector, set in place in one model on the device.

`merging.formula` computes the same for files, rounding operation by operation as IEEE demands, so
that a merge has the same bytes on any machine. Here a fused multiply-add on the device rounds once:
several times as fast, and measures and learning need the loss, not the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from clipmerge.checkpoint import Inputs
from clipmerge.errors import MeasureError
from clipmerge.files.finite import require_finite
from clipmerge.models import ImageTextModel

#: WiSE-FT's alpha where nothing is tuned (Wortsman et al. 2022): learning starts there.
DEFAULT_ALPHA = 0.5
T = TypeVar("T")
#: Entries that a card computes at once: 128 MB in float32, which is what such an operation takes
#: beside its inputs.
LARGE = 1 << 25
# Entries of a tensor that are read at a time if it is not needed whole.
_ENTRIES = 1 << 20
# Entries up to which a tensor is copied into memory: mapping it again takes longer than that.
_MAX_COPIED = 1 << 16


class EndpointTensors(Mapping[str, Tensor]):
    """Theta_0 or the task vector by name, in memory or read from mapped files on every access."""

    def __init__(self) -> None:
        """Start without tensors."""
        self._sources: dict[str, Tensor | Callable[[slice | None], Tensor]] = {}

    def add(self, name: str, source: Tensor | Callable[[slice | None], Tensor]) -> None:
        """Keep a tensor in memory, or read it, or some of its rows, on every access."""
        self._sources[name] = source

    def __getitem__(self, name: str) -> Tensor:
        return self.rows(name, None)

    def rows(self, name: str, rows: slice | None) -> Tensor:
        """Some rows of a tensor; ``None`` for all of it."""
        source = self._sources[name]
        return rows_of(source, rows) if isinstance(source, Tensor) else source(rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in memory."""
        return sum(source.nbytes for source in self._sources.values() if isinstance(source, Tensor))

    def __contains__(self, name: object) -> bool:
        # `Mapping`'s own would read the tensor, from a disk perhaps, to see whether it is there
        return name in self._sources


def _is_mapped(name: str, parameter: Parameter, inputs: Inputs) -> bool:
    """Whether both ends can be read again at no more than the cost of copying them into the
    device's memory.
    """
    if parameter.numel() <= _MAX_COPIED or parameter.device.type != "cpu":
        return False

    def reads_in_place(end: Callable[[str], Tensor]) -> bool:
        first = end(name)
        # a tensor that is formed, not stored, is formed again elsewhere: `first` still lives
        inputs.release(name)
        return end(name).data_ptr() == first.data_ptr() and first.shape == parameter.shape

    return all(map(reads_in_place, (inputs.theta_0, inputs.theta_1)))


def _are_short(name: str, parameter: Parameter, inputs: Inputs) -> bool:
    """Whether a card holds both ends in the 16 bits that they have in their files."""
    ends = (inputs.theta_0(name), inputs.theta_1(name))
    fit = all(
        end.dtype in (torch.float16, torch.bfloat16) and end.shape == parameter.shape
        for end in ends
    )
    return fit and parameter.device.type != "cpu"


def row_chunks(tensor: Tensor) -> list[slice | None]:
    """Runs of a tensor's rows, of about a million entries each; all of it at once if there are no
    more, or on a card.

    On a CPU, large buffers would not fit between what a backward pass still holds, and take new
    memory.

    Example:
        >>> row_chunks(torch.empty(3, 1 << 19)), row_chunks(torch.empty(3, 4))
        ([slice(0, 2, None), slice(2, 4, None)], [None])
    """
    if tensor.numel() <= _ENTRIES or not tensor.ndim or tensor.device.type != "cpu":
        return [None]
    step = max(1, _ENTRIES * len(tensor) // tensor.numel())
    return [slice(start, start + step) for start in range(0, len(tensor), step)]


def rows_of(values: Tensor, rows: slice | None) -> Tensor:
    """Some rows of a tensor, as a view of it; a scalar, which applies to every row, is returned
    whole.
    """
    return values if rows is None or not values.ndim else values[rows]


def _read(inputs: Inputs, name: str, rows: slice | None = None, *, change: bool) -> Tensor:
    """Read theta_0, or theta_1 - theta_0, into memory of its own, float32, and release the files'
    pages.
    """
    value = rows_of(inputs.theta_0(name), rows).to(torch.float32, copy=True)
    if change:
        torch.sub(rows_of(inputs.theta_1(name), rows).float(), value, out=value)
    inputs.release(name)
    return value


class InterpolatedWeights:
    """The weights of one model at theta_0 + alpha * task_vector.

    Attributes:
        parameters: The model's parameters by canonical name; those that fine-tuning did not change
            are frozen.
        theta_0: Zero-shot values of the changed parameters by name, float32.
        task_vector: theta_1 - theta_0 of the changed parameters by name, float32.
        layers: Names of the changed parameters by layer; only layers that fine-tuning changed.
        moves: Counts the moves, so that values kept for some weights are not used for others.
        text_moves: Counts the moves of the text tower.
    """

    def __init__(self, model: ImageTextModel, inputs: Inputs, device: torch.device) -> None:
        """Load the zero-shot weights, and keep the task vector."""
        model.load(inputs.theta_0, inputs.zeroshot.source)
        model.module.to(device)
        self.parameters = model.parameters
        self.theta_0 = EndpointTensors()
        self.task_vector = EndpointTensors()
        # both ends as they are in 16-bit checkpoints, on a card: half of the memory of theta_0 and
        # a task vector
        self._short: dict[str, tuple[Tensor, Tensor]] = {}
        self.moves = self.text_moves = 0
        for name, parameter in self.parameters.items():
            self._store_endpoints(name, parameter, inputs)
        if not self.task_vector:
            raise MeasureError(
                f"{inputs.zeroshot.source} and {inputs.finetuned[0].source} hold the same weights;"
                " there is nothing to measure or merge"
            )
        changed = {
            layer: tuple(n for n in names if n in self.task_vector)
            for layer, names in inputs.layers.items()
        }
        self.layers = {layer: names for layer, names in changed.items() if names}

    def _store_endpoints(self, name: str, parameter: Parameter, inputs: Inputs) -> None:
        """Store a parameter's zero-shot value and its change; freeze the parameter if it did not
        change.
        """
        parameter.requires_grad_(False)
        theta_0 = parameter.detach()
        require_finite(theta_0, name, inputs.zeroshot.source)
        if not inputs.merges(name):
            return
        task_vector = inputs.theta_1(name).to(device=theta_0.device, dtype=torch.float32) - theta_0
        require_finite(task_vector, name, inputs.finetuned[0].source)
        if bool(task_vector.any()):
            parameter.requires_grad_(True)
            if _is_mapped(name, parameter, inputs):
                self.theta_0.add(name, partial(_read, inputs, name, change=False))
                self.task_vector.add(name, partial(_read, inputs, name, change=True))
            elif _are_short(name, parameter, inputs):
                ends = (
                    inputs.theta_0(name).to(theta_0.device),
                    inputs.theta_1(name).to(theta_0.device),
                )
                self._short[name] = ends
                self.theta_0.add(name, lambda rows: rows_of(ends[0], rows).float())
                self.task_vector.add(
                    name, lambda rows: rows_of(ends[1], rows).float() - rows_of(ends[0], rows)
                )
            else:
                self.theta_0.add(name, theta_0.clone())
                self.task_vector.add(name, task_vector)

    @property
    def endpoint_nbytes(self) -> int:
        """Bytes of both ends in memory."""
        short = sum(end.nbytes for ends in self._short.values() for end in ends)
        return self.theta_0.nbytes + self.task_vector.nbytes + short

    @property
    def has_short_ends(self) -> bool:
        """Whether both ends of some weights are held in 16 bits."""
        return bool(self._short)

    def copy_task_vectors(self, names: Sequence[str], out: Sequence[Tensor]) -> None:
        """Copy the task vectors of several parameters, with few kernels for many of them."""
        targets = dict(zip(names, out, strict=True))
        short = [name for name in names if name in self._short]
        others = [name for name in names if name not in self._short]
        copy_each([targets[name] for name in others], [self.task_vector[name] for name in others])
        if short:
            made = [targets[name] for name in short]
            copy_each(made, [self._short[name][1] for name in short])
            starts = [torch.empty_like(tensor) for tensor in made]
            copy_each(starts, [self._short[name][0] for name in short])
            torch._foreach_sub_(made, starts)

    def _interpolate(self, names: Sequence[str], factors: Sequence[Tensor]) -> None:
        """Set several parameters on a card, with few kernels for many of them."""
        factor_of = dict(zip(names, factors, strict=True))
        targets = {name: self.parameters[name].data for name in names}
        short = [name for name in names if name in self._short]
        others = [name for name in names if name not in self._short]
        if short:
            placed = [targets[name] for name in short]
            copy_each(placed, [self._short[name][0] for name in short])
            ends = [torch.empty_like(tensor) for tensor in placed]
            copy_each(ends, [self._short[name][1] for name in short])
            torch._foreach_lerp_(placed, ends, [factor_of[name] for name in short])
        if others:
            placed = [targets[name] for name in others]
            copy_each(placed, [self.theta_0[name] for name in others])
            changes = [self.task_vector[name] for name in others]
            torch._foreach_addcmul_(placed, changes, [factor_of[name] for name in others])

    @property
    def text_changes(self) -> bool:
        """Whether fine-tuning changed the text tower."""
        return any(layer.startswith("text.") for layer in self.layers)

    @torch.no_grad()
    def set_alpha(self, alpha: float, layers: Collection[str] | None = None) -> None:
        """Set the weights, or those of some layers, to theta_0 + alpha * task_vector, in place."""
        moved = self.layers if layers is None else layers
        self.invalidate_caches(text=any(layer.startswith("text.") for layer in moved))
        for name in (name for layer in moved for name in self.layers[layer]):
            torch.add(
                self.theta_0[name],
                self.task_vector[name],
                alpha=alpha,
                out=self.parameters[name].data,
            )

    @torch.no_grad()
    def set_coefficients(self, coefficients: Callable[[str], Tensor], names: Iterable[str]) -> None:
        """Set weights to theta_0 + c * task_vector, in place; c broadcasts to its parameter."""
        if next(iter(self.parameters.values())).device.type == "cpu":
            for name in names:
                weights = self.parameters[name].data
                factor = coefficients(name)
                for rows in row_chunks(weights):
                    torch.addcmul(
                        self.theta_0.rows(name, rows),
                        self.task_vector.rows(name, rows),
                        rows_of(factor, rows),
                        out=rows_of(weights, rows),
                    )
        else:  # one kernel for many tensors
            for bucket in bucketed(names, lambda name: self.parameters[name].numel(), LARGE):
                self._interpolate(bucket, [coefficients(name) for name in bucket])
        self.invalidate_caches(text=self.text_changes)

    def invalidate_caches(self, *, text: bool) -> None:
        """Count a move, so that values cached for the old weights are not used again."""
        torch.clear_autocast_cache()
        self.moves += 1
        self.text_moves += text

    @contextmanager
    def only(self, layer: str) -> Iterator[list[Parameter]]:
        """Let gradients flow to one layer only, so that the backward pass stops there."""
        chosen = [self.parameters[name] for name in self.layers[layer]]
        for name in self.task_vector:
            self.parameters[name].requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        try:
            yield chosen
        finally:
            for name in self.task_vector:
                self.parameters[name].requires_grad_(True)

    def gradient_of(self, name: str) -> Tensor:
        """A parameter's gradient from the last backward pass; zero if the loss does not depend on
        it.
        """
        gradient = self.parameters[name].grad
        return torch.zeros_like(self.parameters[name]) if gradient is None else gradient

    def clear_gradients(self) -> None:
        """Drop the gradients of the changed parameters."""
        for name in self.task_vector:
            self.parameters[name].grad = None


def bucketed(items: Iterable[T], size_of: Callable[[T], int], min_size: int) -> Iterator[list[T]]:
    """Group items, in order, until each group has at least this size.

    Example:
        >>> list(bucketed([1, 2, 3], int, 3))
        [[1, 2], [3]]
    """
    bucket = list[T]()
    size = 0
    for item in items:
        bucket.append(item)
        size += size_of(item)
        if size >= min_size:
            yield bucket
            bucket = []
            size = 0
    if bucket:
        yield bucket


def copy_each(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensors into others of any precision."""
    for dtype in dict.fromkeys(source.dtype for source in sources):
        pairs = [(t, s) for t, s in zip(targets, sources, strict=True) if s.dtype == dtype]
        torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs])
