"""What methods are given and what becomes of their decisions: tasks, plans, merged tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from clipmerge import methods
from clipmerge.api.merge import prepare
from clipmerge.checkpoint import Inputs, align_checkpoints, open_checkpoint
from clipmerge.merging import formula
from clipmerge.merging.stream import plan_tensors
from clipmerge.methods import Decision, Task
from clipmerge.planning.measurements import Measurements
from clipmerge.planning.plan import LayerPlan, Plan, named_tensors
from clipmerge.planning.provenance import SourceRecord
from clipmerge.planning.recipe import Recipe, load_recipe
from clipmerge.request import Calibration, MergeRequest, SweepRequest
from tests.support.tiny_clip import Folders

RECORD = SourceRecord(source="x", files={})


def inputs_of(folders: Sequence[Path], **options: Any) -> Inputs:
    """The zero-shot checkpoint and the fine-tuned ones, opened and aligned."""
    zeroshot, *finetuned = (open_checkpoint(str(folder)) for folder in folders)
    return align_checkpoints(zeroshot, finetuned, **options)


def request_for(
    folders: Sequence[Path], recipe: str, *sets: str, data: Path | str | None = None, **more: Any
) -> MergeRequest:
    """The request of a merge by a recipe with settings, which takes images from a source."""
    zeroshot, *finetuned = map(str, folders)
    calibration = Calibration(source=str(data) if data else None, device="cpu")
    return MergeRequest(
        zeroshot, tuple(finetuned), load_recipe(recipe, list(sets)), calibration=calibration, **more
    )


def sweep_of(
    pair: Folders, near: Path | str, far: Path | str, *recipes: Recipe, **more: Any
) -> SweepRequest:
    """The request of a sweep over recipes, with images that are near the target and images that are
    far from it."""
    zeroshot, finetuned = map(str, pair)
    return SweepRequest(
        zeroshot, (finetuned,), {"near": str(near)}, {"far": str(far)}, recipes, **more
    )


def plan_of(folders: Sequence[Path], recipe: str, *sets: str, **more: Any) -> Plan:
    return prepare(request_for(folders, recipe, *sets, **more)).light_plan


def task_of(
    folders: Sequence[Path], measurements: Measurements | None = None, seed: int = 0
) -> Task:
    return Task(inputs_of(folders), measurements, seed)


def decide(task: Task, method: str, **options: Any) -> Decision:
    return methods.decide(task, method, options)


def plan_with(
    layers: Mapping[str, LayerPlan], weights: tuple[float, ...] = (1.0,), **options: Any
) -> Plan:
    records = (RECORD,) * len(weights)
    return Plan(
        recipe={},
        zeroshot=RECORD,
        finetuned=records,
        weights=weights,
        layers=dict(layers),
        **options,
    )


def in_chunks(inputs: Inputs, plan: Plan, chunk: int = formula.CHUNK) -> dict[str, Tensor]:
    """The tensors that a plan gives, by parameter, made in chunks of so many elements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formula, "CHUNK", chunk)
        return {
            tensor.name: tensor.tensor(tensor.chunks(np.empty))
            for tensor in plan_tensors(inputs, plan)
        }


def merged(
    task: Task, decision: Decision, *, seed: int = 0, chunk: int = formula.CHUNK
) -> dict[str, Tensor]:
    """The tensors that a decision gives, by parameter."""
    plan = plan_with(
        decision.layers, decision.weights, combine=decision.combine, seed=seed
    ).checked(task.layers)
    plan = plan.with_tensors(named_tensors(decision.scores, {}))
    return in_chunks(task.inputs, plan, chunk)
