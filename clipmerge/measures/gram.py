"""The Gram matrix of each linear map's inputs, at both ends of the path."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from clipmerge.learning.objective import FORWARD, Objective
from clipmerge.models.classifier import Prompts
from clipmerge.planning.measurements import Measurements
from clipmerge.types import Tensors

_ENDS = {"gram_zeroshot": 0.0, "gram_finetuned": 1.0}


def gram(objective: Objective) -> Measurements:
    """Compute the Gram matrix of each linear map that fine-tuning changed: the sum of x x^T over
    all its inputs x, from images and prompts.

    Inputs at padding positions are left out if the tokens mark them. Costs one forward pass per
    end, and memory for two square matrices per map, as wide as its inputs.

    Args:
        objective: Calibration loss. Its weights are left at theta_1.

    Returns:
        No statistics; tensors ``gram_zeroshot`` and ``gram_finetuned`` of shape (inputs, inputs) by
        weight matrix.

    Source:
        RegMean, Jin et al. 2022, arXiv:2212.09849.
    """
    objective.announce(forward=2)
    tensors = {}
    for statistic, alpha in _ENDS.items():
        objective.path.set_alpha(alpha)
        sums = _gram_matrices(objective)
        tensors[statistic] = objective.sum_over_processes(sums)
    parameters = objective.path.parameters
    wide = [name for name in objective.path.names if parameters[name].ndim > 1]
    missing = len(wide) - len(sums)
    note = f"{missing} weights of two or more dimensions are not linear maps"
    return Measurements(
        measure="gram",
        batch_sizes=objective.batch_sizes,
        notes=(note,) if missing else (),
        tensors=tensors,
    )


@torch.no_grad()
def _gram_matrices(objective: Objective) -> Tensors:
    """Sum Gram matrices over this process's images. The main process adds those of the prompts."""
    names = {id(objective.path.parameters[name]): name for name in objective.path.names}
    linear = {
        names[id(module.weight)]: module
        for module in objective.classifier.model.module.modules()
        if isinstance(module, torch.nn.Linear)
        # torch's attention uses the weights of this map without calling it, so no hook runs
        and not isinstance(module, NonDynamicallyQuantizableLinear)
        and id(module.weight) in names
    }
    sums = {
        name: torch.zeros(module.in_features, module.in_features, device=module.weight.device)
        for name, module in linear.items()
    }
    parts: dict[str, Any] = {}  # sums over the current images or prompts
    mask: Tensor | None = None  # attention mask of the current prompts

    def add_inputs(name: str, _module: torch.nn.Module, positional: tuple[Tensor, ...]) -> None:
        inputs = positional[0]
        if mask is not None and inputs.shape[:-1] == mask.shape:
            rows = inputs[mask.bool()]
        else:
            rows = inputs.flatten(0, -2)
        parts[name] = parts.get(name, 0) + rows.T @ rows

    def embed(pixels: Tensor, at_once: int) -> None:
        parts.clear()  # parts of an attempt that ran out of memory
        for piece in torch.split(pixels, at_once):
            objective.classifier.model.image_features(piece)

    def add_parts() -> None:
        for name, part in parts.items():
            sums[name].add_(part)
        parts.clear()

    with ExitStack() as hooks:
        for name, module in linear.items():
            hooks.callback(module.register_forward_pre_hook(partial(add_inputs, name)).remove)
        for batch in objective.batches:
            objective.micro_batcher.run(len(batch), partial(embed, batch.pixels))
            add_parts()
            objective.work.count(FORWARD * len(batch))
        classifier = objective.classifier
        if (
            objective.context.is_main_process
            and objective.path.text_changes
            and isinstance(classifier, Prompts)
        ):
            for tokens in classifier.pieces():
                mask = tokens.get("attention_mask")
                classifier.model.text_features(tokens)
            add_parts()
    return sums
