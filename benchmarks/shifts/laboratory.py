"""Experiments on one pair: evaluate any plan in memory, take any measure, plant stragglers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.shifts.evaluation import by_drawing
from benchmarks.shifts.experiment import TrainedPair
from benchmarks.shifts.standing import accuracy
from benchmarks.shifts.standing import draws as drawn
from clipmerge.api.merge import prepare
from clipmerge.checkpoint import Inputs, align_checkpoints, open_checkpoint
from clipmerge.evaluation.points import Point
from clipmerge.evaluation.scorer import Scorer, stack_correct
from clipmerge.images.dataset import load_images
from clipmerge.images.prompts import DEFAULT_TEMPLATE
from clipmerge.models.building import build_model
from clipmerge.planning.measurements import Measurements
from clipmerge.planning.plan import LayerPlan, Plan
from clipmerge.planning.recipe import Recipe
from clipmerge.progress import Progress
from clipmerge.request import Calibration, MergeRequest

Floats = NDArray[np.float64]
#: Number of calibration images of every measurement here.
IMAGES = 256


@dataclass(frozen=True)
class Laboratory:
    """One pair.

    Attributes:
        trained: The checkpoints and pictures.
    """

    trained: TrainedPair

    @cached_property
    def inputs(self) -> Inputs:
        """Both checkpoints, opened."""
        return _opened(self.trained.zeroshot, self.trained.finetuned)

    @cached_property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Parameters by layer, for those that fine-tuning moved."""
        return {
            layer: names for layer, names in self.inputs.layers.items() if self.length(names) > 0
        }

    def length(self, names: Sequence[str]) -> float:
        """Joint norm ||tau|| of some parameters."""
        squares = [
            (self.inputs.theta_1(name).double() - self.inputs.theta_0(name).double()).square().sum()
            for name in names
        ]
        return float(torch.stack(squares).sum().sqrt())

    def measured(
        self, seed: int = 0, finetuned: Path | None = None, **measure: Any
    ) -> Measurements:
        """Take a measure."""
        recipe = Recipe(
            name="laboratory", measure=measure, method={"name": "wise-ft", "alpha": 0.5}
        )
        calibration = Calibration(
            source=str(self.trained.calibration), images=IMAGES, device="cpu", held_back=0.0
        )
        sources = (str(self.trained.zeroshot), (str(finetuned or self.trained.finetuned),))
        with sdpa_kernel(SDPBackend.MATH):
            request = MergeRequest(*sources, recipe, calibration=calibration, seed=seed)
            plan = prepare(request, Progress()).plan
        assert plan is not None
        assert plan.measurements is not None  # it was asked for
        return plan.measurements

    def planned(
        self, layers: Mapping[str, Mapping[str, Any]], seed: int = 0, **others: Any
    ) -> Point:
        """Make a plan with settings for some layers, and others for all the rest."""
        recipe = Recipe(name="laboratory", method={"name": "wise-ft", "alpha": 0.5})
        plan = prepare(
            MergeRequest(str(self.trained.zeroshot), (str(self.trained.finetuned),), recipe),
            Progress(),
        ).plan
        assert plan is not None
        entries = {name: LayerPlan(**{**others, **layers.get(name, {})}) for name in plan.layers}
        return Point(None, Plan(**{**dict(plan), "layers": entries, "seed": seed}))

    def accuracy(self, points: Sequence[Point], draws: int) -> tuple[Floats, Floats]:
        """Evaluate points.

        Returns:
            ID and mean OOD accuracy, each of shape (1 + draws, points), the measured values first.
        """
        sources = {"test": self.trained.test, **self.trained.ood}
        loaded = {name: load_images(str(folder)) for name, folder in sources.items()}
        scorer = Scorer(
            build_model(self.inputs),
            self.inputs,
            Calibration(device="cpu", templates=(DEFAULT_TEMPLATE,)),
        )
        scored = scorer.score([point.move for point in points], loaded, Progress())
        ordered = {
            name: by_drawing(stack_correct(each), sources[name]) for name, each in scored.items()
        }
        times = drawn({name: each.things for name, each in ordered.items()}, draws)
        found = {}
        for name, each in ordered.items():
            found[name] = accuracy(
                times[name], each.right.reshape(len(points), len(each.things), -1)
            )
        return found["test"], np.mean([found[name] for name in self.trained.ood], axis=0)

    def altered(self, folder: Path, layer: str, factor: float | None, seed: int = 0) -> Path:
        """Write the fine-tuned checkpoint with another task vector in one layer."""
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for name in self.layers[layer]:
            theta_0 = self.inputs.theta_0(name)
            change = self.inputs.theta_1(name) - theta_0
            if factor is None:
                random = torch.randn(change.shape, generator=generator)
                change = random * (change.norm() / random.norm())
            weights[name] = theta_0 + change * (1 if factor is None else factor)
        return self.written(folder, weights)

    def permuted(self, folder: Path, layer: str, seed: int = 0) -> Path:
        """Write the fine-tuned checkpoint with the hidden units of one mlp in another order.

        It computes the same, but the straight path to it passes a barrier that this layer alone
        makes.
        """
        weights = {name: self.inputs.theta_1(name) for name in self.layers[layer] if ".fc" in name}
        hidden = next(
            weight for name, weight in weights.items() if name.endswith("fc1.bias")
        ).numel()
        order = torch.randperm(hidden, generator=torch.Generator().manual_seed(seed))
        for name, weight in weights.items():
            if ".fc1." in name:
                weights[name] = weight[order]
            elif name.endswith("fc2.weight"):
                weights[name] = weight[:, order]
        return self.written(folder, weights)

    def written(self, folder: Path, weights: Mapping[str, Tensor]) -> Path:
        """Write the fine-tuned checkpoint with some weights replaced."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.trained.finetuned, folder)
        file = folder / "model.safetensors"
        changed = {name: value.contiguous() for name, value in weights.items()}
        save_file(load_file(file) | changed, file, metadata={"format": "pt"})
        return folder


def _opened(zeroshot: Path, finetuned: Path) -> Inputs:
    return align_checkpoints(open_checkpoint(str(zeroshot)), [open_checkpoint(str(finetuned))])


def read_claims(file: Path) -> dict[str, Any]:
    """Read earlier results; empty if there are none."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found
