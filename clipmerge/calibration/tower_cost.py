"""The work of a prompt relative to that of an image, counted in one forward pass of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipmerge.calibration.loss import CalibrationLoss
from clipmerge.calibration.shares import Shares


@dataclass(frozen=True)
class TowerCost:
    """What a forward pass calls, and what it costs.

    Attributes:
        called: Modules without children that are called for an image or a prompt.
        per_image: Number of output entries for one image, of the modules that are called for an image.
        prompt: Work of a prompt, in forward passes of an image; the same in every process.
    """

    called: set[torch.nn.Module]
    per_image: dict[torch.nn.Module, int]
    prompt: float

    def wide(self, images: int) -> set[torch.nn.Module]:
        """Modules whose output for this many images at once has more entries than their weights."""
        return {
            module
            for module, entries in self.per_image.items()
            if entries * images > sum(parameter.numel() for parameter in module.parameters())
        }


@contextmanager
def _calls_of(module: torch.nn.Module, seen: Callable[[torch.nn.Module, Any], None]) -> Iterator[None]:
    """Report every call of a module without children."""
    with ExitStack() as hooks:
        for each in module.modules():
            if not list(each.children()):
                hooks.callback(each.register_forward_hook(lambda m, _given, output: seen(m, output)).remove)
        yield


@torch.no_grad()
def tower_cost(criterion: CalibrationLoss, shares: Shares) -> TowerCost:
    """Send one image and one prompt through the model, and count multiplications in its matrices."""
    called: set[torch.nn.Module] = set()
    per_image: dict[torch.nn.Module, int] = {}
    work = {"image": 0.0, "prompt": 0.0}
    now = "image"

    def seen(module: torch.nn.Module, output: Any) -> None:
        called.add(module)
        if now == "image" and isinstance(output, Tensor):
            per_image[module] = output.numel()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and isinstance(output, Tensor):
            work[now] += output.numel() * (module.weight.numel() // module.weight.shape[0])

    with _calls_of(criterion.model.module, seen):
        for batch in shares.batches[:1]:
            criterion.embed(batch.pixels[:1])
        now = "prompt"
        criterion.prompts.features(places=torch.zeros(1, dtype=torch.int64, device=shares.accelerator.device))
    # a process without a batch cannot measure it
    prompt = max(shares.gather([work["prompt"] / work["image"] if work["image"] else 0.0]))
    return TowerCost(called, per_image, prompt or 1.0)
