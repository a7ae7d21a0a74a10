"""The diagonal of the Fisher information at both ends of the path: how much predictions depend on
each weight.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipmerge.learning.objective import Batch, Loss, Objective
from clipmerge.planning.measurements import Measurements
from clipmerge.plugins import Count
from clipmerge.types import Tensors

_ENDS = {"fisher_zeroshot": (0.0, "zero-shot"), "fisher_finetuned": (1.0, "fine-tuned")}


def fisher(objective: Objective, *, probes: Count = 4) -> Measurements:
    """Estimate the mean over images of the squared gradient of log p(label | image), entry by
    entry.

    The square of each image's gradient g_i is needed, but a gradient pass gives the sum of a
    batch's gradients. Its square would vanish where gradients of images cancel. Therefore the
    images get random signs v_i: the expectation of (sum_i v_i g_i)^2 is sum_i g_i^2. One pass per
    probe then serves a whole batch. With one image per batch, the signs change nothing.

    Args:
        objective: Calibration loss. Its weights are left at theta_1.
        probes: Draws of signs and of labels; each costs one gradient pass per end, and more reduce
            the noise.

    Returns:
        Statistics ``fisher_zeroshot`` and ``fisher_finetuned``, means over a layer's entries, and
        one tensor per parameter under the same names.

    Raises:
        ClipmergeError: If a loss is not finite.

    Source:
        Fisher merging, Matena and Raffel 2022, arXiv:2111.09832; the signs are Hutchinson's trick.
    """
    objective.announce(gradient=2 * probes)
    statistics = []
    tensors = {}
    for name, (alpha, end) in _ENDS.items():
        objective.path.set_alpha(alpha)
        squares, batches = _sum_squares(objective, probes)
        scale = 1 / (sum(objective.batch_sizes) * probes)
        tensors[name] = {
            parameter: value.mul_(scale)
            for parameter, value in objective.sum_over_processes(squares).items()
        }
        statistics.append(
            objective.statistic(
                name,
                batches,
                title=f"{end} Fisher information",
                about=f"mean Fisher information of the layer's entries at the {end} end.",
            )
        )
    return Measurements(
        measure="fisher",
        statistics=tuple(statistics),
        batch_sizes=objective.batch_sizes,
        tensors=tensors,
    )


def _sum_squares(objective: Objective, probes: int) -> tuple[Tensors, dict[int, list[float]]]:
    """Sum the squared gradients over this process's images and probes.

    Return the sum of each entry, and for each batch the mean square of each layer's entries.
    """
    path = objective.path
    squares = {name: torch.zeros_like(path.parameters[name].detach()) for name in path.names}
    values = {batch.number: [0.0] * len(path.layers) for batch in objective.batches}
    layers = path.layers.values()
    sizes = [sum(squares[name].numel() for name in names) for names in layers]
    for probe in range(probes):
        for batch, _ in objective.gradients(_random_sign_loss(objective, probe)):
            sums = {}
            for name, squared in squares.items():
                square = path.gradient(name).square()
                squared.add_(square)
                sums[name] = square.sum()
            for column, names in enumerate(layers):
                total = torch.stack([sums[name] for name in names]).sum()
                share = total / (sizes[column] * len(batch) * probes)
                values[batch.number][column] += float(share)
    return squares, values


def _random_sign_loss(objective: Objective, probe: int) -> Loss:
    """Return the loss of one probe: the sum of a batch's losses, each with a random sign, for
    labels that are drawn from the model's own predictions.
    """

    def loss(batch: Batch, logits: Tensor, targets: Tensor) -> Tensor:
        # on the CPU: the same numbers on every device and in every process
        seed = objective.seed * 100_003 + probe * 10_007 + batch.number
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, targets.shape, generator=generator, dtype=torch.float32) * 2 - 1
        chances = logits.detach().softmax(dim=-1).cpu()
        labels = torch.multinomial(chances, 1, generator=generator).flatten()
        losses = cross_entropy(logits, labels.to(logits.device), reduction="none")
        total: Tensor = (signs.to(logits.device) * losses).sum()
        return total

    return loss
