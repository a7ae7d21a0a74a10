"""Both ends of the path on the device, and one model whose weights are set in place to any point
between them.

The weights are those that a merge writes, rounded to the output's dtype before they are put into
the model.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from clipmerge.checkpoint import Inputs
from clipmerge.config import OutputDtype
from clipmerge.errors import CheckpointError
from clipmerge.families import is_variance
from clipmerge.files.finite import is_finite, require_finite
from clipmerge.files.writer import iter_contents
from clipmerge.learning.mixtures import mixed
from clipmerge.merging.stream import plan_tensors
from clipmerge.models import ImageTextModel
from clipmerge.models.headed_tower import HeadedTower
from clipmerge.planning.plan import Plan


class PlacedModel:
    """A model on a device, with its weights as they are."""

    def __init__(self, model: ImageTextModel | HeadedTower, device: torch.device) -> None:
        self.model = model
        # counts the moves that changed the text tower; prompts are embedded only after those
        self.text_version = 0
        model.module.to(device)


class MovingModel(PlacedModel):
    """A model between zero-shot and fine-tuned, with the average of several fine-tuned ones as
    theta_1.
    """

    def __init__(
        self,
        model: ImageTextModel | HeadedTower,
        inputs: Inputs,
        device: torch.device,
        *,
        dtype: OutputDtype = "keep",
    ) -> None:
        model.load(inputs.theta_0, inputs.zeroshot.source)
        super().__init__(model, device)
        self._pair = inputs
        self._dtype = None if dtype == "keep" else getattr(torch, dtype)
        # the CPU computes with float64, which Apple's devices lack
        wide = {
            name
            for name in model.parameters
            if any(entry.dtype == "F64" for entry in inputs.entries(name))
        }
        homes = {name: torch.device("cpu") if name in wide else device for name in model.parameters}
        self._theta_0 = {name: inputs.theta_0(name).to(home) for name, home in homes.items()}
        merged = [name for name in model.parameters if inputs.merges(name)]
        self._finetuned = [
            {name: inputs.theta_1(name, which=which).to(homes[name]) for name in merged}
            for which in range(len(inputs.finetuned))
        ]
        checkpoints = (inputs.zeroshot, *inputs.finetuned)
        for ends, checkpoint in zip((self._theta_0, *self._finetuned), checkpoints, strict=True):
            for name, tensor in ends.items():
                require_finite(tensor, name, checkpoint.source)

    @torch.no_grad()
    def interpolate(self, alpha: float) -> None:
        """Set the weights to theta_0 + alpha * (theta_1 - theta_0), as `merge_tensor` computes
        it.
        """
        weights = (1.0 / len(self._finetuned),) * len(self._finetuned)
        for name, theta_0 in self._theta_0.items():
            ends = [finetuned.get(name, theta_0) for finetuned in self._finetuned]
            merged = mixed(theta_0, ends, alpha, weights).to(self._dtype or theta_0.dtype)
            if not is_finite(merged):
                raise CheckpointError(
                    f"tensor {name} overflows at alpha {alpha:g}; give `alphas` in [0, 1]"
                )
            if is_variance(name) and bool((merged < 0).any()):
                raise CheckpointError(
                    f"tensor {name} is a variance and becomes negative at alpha {alpha:g}; give"
                    " `alphas` in [0, 1]"
                )
            self._set(name, merged)

    @torch.no_grad()
    def set_finetuned(self, which: int) -> None:
        """Set the weights to one fine-tuned checkpoint's, by its index; weights that it lacks come
        from zero-shot.
        """
        for name, theta_0 in self._theta_0.items():
            self._set(name, self._finetuned[which].get(name, theta_0))

    @torch.no_grad()
    def set_checkpoint(self, other: Inputs) -> None:
        """Set the weights to a checkpoint's that is not on the path; those that it lacks come from
        zero-shot.
        """
        for name, theta_0 in self._theta_0.items():
            value = other.theta_1(name) if other.merges(name) else theta_0
            require_finite(value, name, other.finetuned[0].source)
            self._set(name, value if self._dtype is None else value.to(self._dtype))

    @torch.no_grad()
    def set_plan(self, plan: Plan) -> None:
        """Set the weights to those of a plan, as `plan_tensors` computes them."""
        left = set(self.model.parameters)
        merged = [tensor for tensor in plan_tensors(self._pair, plan) if tensor.name in left]
        with closing(iter_contents(merged, np.empty)) as contents:
            for tensor, content in zip(merged, contents, strict=True):
                self._set(tensor.name, tensor.tensor(content))
                left.remove(tensor.name)
        if left:
            raise CheckpointError(
                f"the merged checkpoint has no {sorted(left)[0]}, so it cannot be evaluated; see"
                " the recipe's `missing`"
            )

    def _set(self, name: str, value: Tensor) -> None:
        target = self.model.parameters[name].data
        value = value.to(device=target.device, dtype=target.dtype)
        if self._pair.layer_of[name].startswith("text.") and not torch.equal(target, value):
            self.text_version += 1
        target.copy_(value)
