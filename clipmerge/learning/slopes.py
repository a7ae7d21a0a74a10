"""How much each layer contributes to the slope of the loss at a point of the path, batch by batch.

s_l = task_vector_l . gradient_l of the loss. Each batch's images go forward and backward once. All
batches share the prompts, so a text layer's slope in batch b is <J_l task_vector_l, dL_b / dF>,
where F are the prompt features and J_l their Jacobian. If that is cheap compared with the images,
each batch takes one backward pass through all prompts. Otherwise the mean over batches takes one,
from the mean of dL_b / dF, and is exact; the batches' differences from it take one each through
some prompts, drawn with probabilities proportional to how much the batches differ about them.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipmerge.learning.activations import Activations
from clipmerge.learning.objective import GRADIENT, Objective
from clipmerge.types import Tensors

# The backward passes of single batches through prompts may cost at most this share of a gradient
# pass over everything.
_SHARE = 0.15
#: At least this many prompts are drawn; if there are no more, all of them are taken.
FEWEST = 16


class Slopes:
    """Slopes of all layers at one point of the path after another.

    Attributes:
        drawn: Number of prompts from which the text layers' differences between batches are
            computed, at most all of them; 0 if the text tower does not change.
        work: Work of one point for this process, in images x forward passes.
    """

    def __init__(
        self, objective: Objective, *, exact: bool = False, gradients: bool = False
    ) -> None:
        """Decide from the model's cost how slopes are computed, and whether to add up the
        gradients.
        """
        path = objective.weights
        shares = objective.data
        prompts = objective.criterion.prompts
        alone = shares.context.world_size == 1
        self._objective = objective
        activations = Activations(objective, "float32", prompts.count if alone else 0)
        objective.criterion.limit_prompts(activations.prompts_at_once)
        self._micro_batcher = objective.micro_batcher(activations.images())
        # few prompts go forward once, and their activations are held while images go through;
        # others go forward twice
        self._keeps_graph = path.text_changes and alone and not prompts.are_many
        # a batch has few of all captions, which are embedded again with a graph
        self._own_prompts = path.text_changes and objective.criterion.is_contrastive
        self._keeps_graph &= not self._own_prompts
        # read once: a path over mapped files reads them on every access
        self._changes = {name: change.flatten() for name, change in path.task_vector.items()}
        # float64 where there is one, so that masks rank the same entries for any number of
        # processes
        wide = torch.float64 if shares.context.device.type in ("cpu", "cuda") else torch.float32
        self._sums = (
            {n: torch.zeros_like(c, dtype=wide) for n, c in path.task_vector.items()}
            if gradients
            else {}
        )
        self._generator = torch.Generator().manual_seed(objective.seed)
        self.drawn = 0
        self._text_work = 0.0
        if self._own_prompts:
            self.drawn = prompts.count
            work = prompts.count * (1 + GRADIENT / shares.context.world_size)
            self._text_work = _prompt_cost(objective) * work
        elif path.text_changes:
            count = prompts.count
            batches = len(shares.batch_sizes)
            cost = _prompt_cost(objective)
            # all if they cost little compared with the images
            max_prompts = int(
                _SHARE * GRADIENT * (shares.images + cost * count) / ((1 + 2 * batches) * cost)
            )
            self.drawn = count if exact or batches == 1 else min(count, max(FEWEST, max_prompts))
            passes = count * (not self._keeps_graph) + self.drawn * (1 + 2 * batches)
            passes += count * GRADIENT * (self.drawn < count)
            self._text_work = cost * passes / shares.context.world_size
        self.work = GRADIENT * sum(len(batch) for batch in shares.batches) + self._text_work

    @property
    def gradients(self) -> Tensors:
        """The mean gradient so far, weighted by the points' parts: by parameter, over all
        processes, on the CPU.
        """
        return self._objective.data.total(self._sums)

    def at(self, alpha: float, part: float = 1.0) -> tuple[np.ndarray, float]:
        """Go to theta(alpha); returns its slopes in nats per unit of alpha, (batches, layers), and
        the mean loss.
        """
        objective = self._objective
        shares = self._objective.data
        objective.weights.set_alpha(alpha)
        graph_features = objective.criterion.prompts.features() if self._keeps_graph else None
        features = (
            objective.criterion.prompt_features() if graph_features is None else graph_features
        )
        rows = {}
        losses = {}
        gradients_by_batch = {}
        for batch, loss, grad_prompts in objective.image_gradients(
            features, micro_batcher=self._micro_batcher
        ):
            weight = part * len(batch) / shares.images
            row = self._pop_slopes(weight)
            if grad_prompts is not None and self._own_prompts:
                positions = torch.unique(batch.labels)
                embedded = objective.criterion.prompts.features(positions=positions)
                embedded.backward(grad_prompts[positions])  # type: ignore[no-untyped-call]
                row += self._pop_slopes(weight)
            elif grad_prompts is not None:
                gradients_by_batch[batch.number] = grad_prompts.cpu()
            rows[batch.number] = row.tolist()
            losses[batch.number] = loss
        slopes = torch.tensor(shares.by_batch(rows), dtype=torch.float64)
        if self._own_prompts:
            objective.work.tick(self._text_work)
        elif objective.weights.text_changes:
            gradients = torch.stack(shares.by_batch(gradients_by_batch)).to(features.device)
            if self.drawn == len(features):
                parts = [part * size / shares.images for size in shares.batch_sizes]
                slopes += self._vjp(None, gradients, parts, graph_features)
            else:
                weights = (
                    torch.tensor(shares.batch_sizes, device=gradients.device, dtype=gradients.dtype)
                    / shares.images
                )
                mean = torch.einsum("b,bpd->pd", weights, gradients)
                slopes += self._vjp(None, mean[None], [part], graph_features)
                del features, graph_features  # with their graph
                gradients -= mean
                positions, chances = _draw(
                    gradients.square().sum((0, 2)).sqrt().cpu(), self.drawn, self._generator
                )
                drawn = gradients[:, positions] / chances.to(gradients)[:, None]
                slopes += self._vjp(positions, drawn, [0.0] * len(drawn))
            objective.work.tick(self._text_work)
        return slopes.numpy(), shares.mean(shares.by_batch(losses))

    def _pop_slopes(self, weight: float) -> Tensor:
        """The slopes along the change of the current gradients, which are dropped: (layers,),
        float64 on the CPU.

        Where mean gradients are kept, adds ``weight`` times the gradients to them.
        """
        path = self._objective.weights
        slopes = torch.zeros(len(path.layers), device=self._objective.data.context.device)
        for index, names in enumerate(path.layers.values()):
            for name in names:
                if (gradient := path.parameters[name].grad) is not None:
                    slopes[index] += torch.dot(gradient.flatten(), self._changes[name])
                    if self._sums and weight:
                        self._sums[name].add_(gradient, alpha=weight)
        path.clear_gradients()
        return slopes.cpu().double()

    def _vjp(
        self,
        positions: Tensor | None,
        cotangents: Tensor,
        parts: list[float],
        graph_features: Tensor | None = None,
    ) -> Tensor:
        """Slopes of <features, cotangent>, added up over processes: (cotangents, layers), float64
        on the CPU.

        ``graph_features`` are those of all prompts, if their graph is there. Processes share the
        prompts. Where gradients are added up, the main process computes all of them: their rounding
        depends on which prompts are computed together, and masks rank entries by it.
        """
        prompts = self._objective.criterion.prompts
        shares = self._objective.data
        total = torch.zeros(
            len(cotangents), len(self._objective.weights.layers), dtype=torch.float64
        )
        chosen = torch.arange(prompts.count) if positions is None else positions
        rank, processes = shares.context.rank, shares.context.world_size
        mine = torch.arange(len(chosen))[slice(rank, None, processes)]
        if self._sums and any(parts):
            mine = torch.arange(len(chosen) if shares.context.is_main_process else 0)
        for piece in torch.split(mine, prompts.at_once) if len(mine) else ():
            embedded = (
                prompts.features(positions=chosen[piece].to(cotangents.device))
                if graph_features is None
                else graph_features
            )
            for row, part in enumerate(parts):
                embedded.backward(cotangents[row][piece.to(cotangents.device)], retain_graph=True)  # type: ignore[no-untyped-call]
                total[row] += self._pop_slopes(part)
        return shares.total({"slopes": total})["slopes"]


@torch.no_grad()
def _prompt_cost(objective: Objective) -> float:
    """The work of a prompt in forward passes of an image: multiplications in the model's matrices
    by one of each.
    """
    work = [0.0]

    def count(module: Any, _inputs: Any, output: Tensor) -> None:
        work[-1] += output.numel() * (module.weight.numel() // module.weight.shape[0])

    criterion = objective.criterion
    shares = objective.data
    with ExitStack() as hooks:
        for module in criterion.model.module.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                hooks.callback(module.register_forward_hook(count).remove)
        for batch in shares.batches[:1]:
            criterion.embed(batch.pixels[:1])
        work.append(0.0)
        criterion.prompts.features(
            positions=torch.zeros(1, dtype=torch.int64, device=shares.context.device)
        )
    image, prompt = work
    # a process without a batch cannot measure it
    return max(shares.gather([prompt / image if image else 0.0])) or 1.0


def _draw(sizes: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw positions by systematic sampling, each with a probability proportional to its size;
    returns both, ascending.
    """
    sizes = sizes.double()
    certain = torch.zeros(len(sizes), dtype=torch.bool)
    chances = torch.zeros_like(sizes)
    while True:  # each iteration but the last makes another position certain
        left = sizes.where(~certain, 0.0)
        chances = (left * max(0, count - int(certain.sum())) / left.sum().clamp_min(1e-300)).where(
            ~certain, 1.0
        )
        above = (chances >= 1) & ~certain
        if not bool(above.any()):
            break
        certain |= above
    start = torch.rand((), generator=generator, dtype=torch.float64)
    ends = chances.cumsum(0)
    # a position is drawn if its stretch of the line holds a whole number beyond the random start
    drawn = (ends - start).ceil() > (ends - chances - start).ceil()
    positions = (drawn | certain).nonzero().flatten()
    return positions, chances[positions]
