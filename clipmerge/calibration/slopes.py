"""How much each layer contributes to the slope of the loss at a point of the path, batch by batch.

s_l = task_vector_l . gradient_l of the loss. Each batch's images go forward and backward once. All batches share the
prompts, so a text layer's slope in batch b is <J_l task_vector_l, dL_b / dF>, where F are the prompt features and J_l
their Jacobian. Its mean over batches takes one backward pass through the text tower, from the mean of dL_b / dF, and is
exact. The batches' differences from the mean take one backward pass each: through all prompts if that is cheap compared
with the images, otherwise through some prompts, drawn with probabilities proportional to how much the batches differ
about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from clipmerge.calibration.activations import Activations
from clipmerge.calibration.objective import FORWARD, GRADIENT, Batch, Objective
from clipmerge.calibration.path import PathWeights
from clipmerge.calibration.tangents import Tangents
from clipmerge.errors import MeasureError

# The backward passes of single batches through prompts may cost at most this share of a gradient pass over everything.
_SHARE = 0.15
#: At least this many prompts are drawn; if there are no more, all of them are taken.
FEWEST = 16


@dataclass(frozen=True)
class Point:
    """The slopes and the loss at one point.

    Attributes:
        slopes: Slope of each batch and layer, in nats per unit of alpha: (batches, layers).
        loss: Mean loss over images, in nats.
    """

    slopes: np.ndarray
    loss: float


class GradientSums:
    """A weighted sum of gradients, and the slopes of all layers along the task vector.

    Attributes:
        part: Weight of the gradients that are added next.
        totals: The sums by parameter; float64 where there is one, so that masks rank the same entries for any number
            of processes.
    """

    def __init__(self, path: PathWeights) -> None:
        """Start at zero."""
        self.part = 0.0
        self._path = path
        self._layers = {name: place for place, names in enumerate(path.layers.values()) for name in names}
        device = next(iter(path.task_vector.values())).device
        wide = torch.float64 if device.type in ("cpu", "cuda") else torch.float32  # others may have none
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


class Slopes:
    """Slopes of all layers at one point of the path after another.

    Attributes:
        drawn: Number of prompts from which the text layers' differences between batches are computed, at most all of
            them; 0 if the text tower does not change.
        work: Work of one point for this process, in images x forward passes.
    """

    def __init__(self, objective: Objective, *, exact: bool = False, gradients: bool = False) -> None:
        """Decide from the model's cost how slopes are computed."""
        self._objective = objective
        cost = objective.tower_cost
        # tangents take as much memory again
        self._pieces = objective.pieces(Activations(objective, "float32").images(2))
        largest = max(objective.shares.batch_sizes)
        # images go backward only once, so the gradient of a wide map's weights is less to write than its tangent
        wide = cost.wide(min(largest, self._pieces.most or largest))
        self._tangents = Tangents(objective.path, objective.criterion.model.module, cost.called - wide)
        self._sums = GradientSums(objective.path) if gradients else None
        self._generator = torch.Generator().manual_seed(objective.seed)
        self.drawn, self._text_work = 0, 0.0
        if objective.path.text_changes:
            prompts, batches = objective.criterion.prompts.count, len(objective.shares.batch_sizes)
            self.drawn = prompts if exact else _affordable(objective.shares.images, prompts, batches, cost.prompt)
            passes = prompts * (2 if self._at_once else 4) + self.drawn * (2 + batches)
            self._text_work = cost.prompt * passes / objective.shares.accelerator.num_processes
        self.work = GRADIENT * sum(len(batch) for batch in objective.shares.batches) + self._text_work

    @property
    def _at_once(self) -> bool:
        """Whether each batch is backpropagated through all prompts, so that their mean needs no separate pass."""
        return self._sums is None and self.drawn == self._objective.criterion.prompts.count

    @property
    def gradients(self) -> dict[str, Tensor]:
        """The mean gradient so far, weighted by the points' parts: by parameter, over all processes, on the CPU."""
        return self._objective.shares.total(self._sums.totals) if self._sums else {}

    def at(self, alpha: float, part: float = 1.0) -> Point:
        """Go to theta(alpha) and compute the slopes there."""
        objective = self._objective
        objective.path.move_to(alpha)
        with (self._sums or self._tangents).recorded():
            features = (
                objective.criterion.prompts.features() if self._keeps_graph else objective.criterion.prompt_features()
            )
            rows, losses, pulls = self._images(features, part)
            slopes = torch.tensor(objective.shares.by_batch(rows), dtype=torch.float64)
            if objective.path.text_changes:
                each = torch.stack(objective.shares.by_batch(pulls)).to(features.device)
                weights = (
                    torch.tensor(objective.shares.batch_sizes, device=each.device, dtype=each.dtype)
                    / objective.shares.images
                )
                mean = torch.einsum("b,bpd->pd", weights, each)
                slopes += self._pulled(features, None, each if self._at_once else mean[None], part)
        if objective.path.text_changes and not self._at_once:
            del features  # with its graph
            with self._tangents.recorded():
                slopes += self._differences(each - mean)
        objective.work.tick(self._text_work)
        return Point(slopes.numpy(), objective.shares.mean(objective.shares.by_batch(losses)))

    @property
    def _held(self) -> int:
        """Prompts whose activations are held together with their tangents, which take about as much."""
        return max(1, self._objective.criterion.prompts.at_once // 2)

    @property
    def _keeps_graph(self) -> bool:
        """Whether the features keep their graph: prompts are few, and no other process takes a share of them."""
        objective = self._objective
        alone = objective.shares.accelerator.num_processes == 1
        return objective.path.text_changes and alone and objective.criterion.prompts.count <= self._held

    def _images(
        self, features: Tensor, part: float
    ) -> tuple[dict[int, list[float]], dict[int, float], dict[int, Tensor]]:
        """Send the images through; returns slopes, loss and gradient of the prompt features by batch number."""
        objective = self._objective
        rows, losses, pulls = {}, {}, {}
        for batch in objective.shares.batches:
            leaf = features.detach().requires_grad_(objective.path.text_changes)
            rows[batch.number], losses[batch.number] = self._image_slopes(batch, leaf, part)
            if leaf.grad is not None:
                pulls[batch.number] = leaf.grad.cpu()
            objective.work.tick(GRADIENT * len(batch))
        return rows, losses, pulls

    def _image_slopes(self, batch: Batch, leaf: Tensor, part: float) -> tuple[list[float], float]:
        if self._sums:
            self._sums.part = part * len(batch) / self._objective.shares.images
            # sums of gradients cannot be taken back to try again with fewer images
            loss = self._objective.criterion.add_gradients(batch, leaf, None, self._pieces.most)
        else:
            loss = self._pieces.tried(len(batch), partial(self._tried, batch, leaf))
        if not loss < float("inf"):
            raise MeasureError(f"the loss of calibration batch {batch.number} is {loss}; check the checkpoints")
        return (self._sums or self._tangents).take().tolist(), loss

    def _tried(self, batch: Batch, leaf: Tensor, most: int) -> float:
        """Send a batch forward and backward, and forget what an attempt with too many images has left."""
        leaf.grad = None
        self._tangents.take()
        return self._objective.criterion.add_gradients(batch, leaf, None, most)

    def _own(self, prompts: int, *, shared: bool) -> Tensor:
        """The prompts that this process computes. If they are not shared, the main process computes all of them.

        The rounding of a mean gradient depends on which prompts are computed together, and masks rank entries by it, so
        it must not depend on the number of processes.
        """
        accelerator = self._objective.shares.accelerator
        if shared:
            return torch.arange(prompts)[accelerator.process_index :: accelerator.num_processes]
        return torch.arange(prompts if accelerator.is_main_process else 0)

    def _differences(self, differences: Tensor) -> Tensor:
        """Slopes of the differences between the batches' gradients and their mean, from all prompts or from some."""
        if self.drawn == self._objective.criterion.prompts.count:
            return self._pulled(None, None, differences)
        sizes = differences.square().sum((0, 2)).sqrt().cpu()
        places, chances = _draw(sizes, self.drawn, self._generator)
        return self._pulled(None, places, differences[:, places] / chances.to(differences)[:, None])

    def _pulled(self, features: Tensor | None, places: Tensor | None, cotangents: Tensor, part: float = 0.0) -> Tensor:
        """Slopes of <features, cotangent>, added up over processes: (cotangents, layers), float64 on the CPU."""
        objective = self._objective
        recorder = self._sums if self._sums and part else self._tangents
        if self._sums:
            self._sums.part = part
        if features is not None and features.requires_grad:
            return torch.stack([_back(recorder, features, each) for each in cotangents])
        total = torch.zeros(len(cotangents), len(objective.path.layers), dtype=torch.float64)
        chosen = torch.arange(objective.criterion.prompts.count) if places is None else places
        mine = self._own(len(chosen), shared=recorder is self._tangents)
        for piece in torch.split(mine, self._held) if len(mine) else ():
            embedded = objective.criterion.prompts.features(places=chosen[piece].to(cotangents.device))
            total += torch.stack([_back(recorder, embedded, each[piece.to(each.device)]) for each in cotangents])
        return objective.shares.total({"slopes": total})["slopes"]


def _back(recorder: Tangents | GradientSums, embedded: Tensor, cotangent: Tensor) -> Tensor:
    embedded.backward(cotangent, retain_graph=True)  # type: ignore[no-untyped-call]
    return recorder.take()


def _affordable(images: int, prompts: int, batches: int, cost: float) -> int:
    """How many prompts the batches' differences are computed from; all if they cost little compared with the images."""
    allowed = _SHARE * GRADIENT * (images + cost * prompts)
    if prompts <= FEWEST or FORWARD * (batches - 1) * cost * prompts <= allowed:
        return prompts
    return min(prompts, max(FEWEST, int(allowed / ((2 + batches) * cost))))


def _draw(sizes: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw places by systematic sampling, each with a probability proportional to its size; returns both, ascending."""
    sizes = sizes.double()
    certain = torch.zeros(len(sizes), dtype=torch.bool)
    chances = torch.zeros_like(sizes)
    while True:  # each iteration but the last makes another place certain
        left = sizes.where(~certain, 0.0)
        chances = (left * max(0, count - int(certain.sum())) / left.sum().clamp_min(1e-300)).where(~certain, 1.0)
        above = (chances >= 1) & ~certain
        if not bool(above.any()):
            break
        certain |= above
    start = torch.rand((), generator=generator, dtype=torch.float64)
    ends = chances.cumsum(0)
    # a place is drawn where its stretch of the line holds a whole number beyond the random start
    drawn = (ends - start).ceil() > (ends - chances - start).ceil()
    places = (drawn | certain).nonzero().flatten()
    return places, chances[places]
