"""What methods are given and what becomes of their decisions: tasks, plans, merged tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from clipmerge import methods
from clipmerge.api.merge import open_and_decide
from clipmerge.checkpoint import Inputs, align_checkpoints, open_checkpoint
from clipmerge.files import writer
from clipmerge.files.safetensors import Array
from clipmerge.merging import add_change, merged_change
from clipmerge.merging.stream import merged_tensors
from clipmerge.methods import Decision, Task
from clipmerge.options import PlanOptions
from clipmerge.planning.measurements import Measurements
from clipmerge.planning.plan import LayerPlan, Plan, SourceRecord
from clipmerge.planning.recipe import Recipe, load_recipe
from clipmerge.progress import Journal, Progress

RECORD = SourceRecord(source="x", files={})


def inputs_of(folders: Sequence[Path], **options: Any) -> Inputs:
    """The zero-shot checkpoint and the fine-tuned ones, opened and aligned."""
    zeroshot, *finetuned = (open_checkpoint(str(folder)) for folder in folders)
    return align_checkpoints(zeroshot, finetuned, **options)


def plan_of(folders: Sequence[Path], recipe: str, *sets: str, **options: Any) -> Plan:
    """Plan a merge by a recipe with settings."""
    chosen = load_recipe(recipe, list(sets))
    opts, journal = PlanOptions.of({"device": "cpu", **options}), Journal(Progress())
    with open_and_decide(folders, chosen, opts, journal) as (_, _, record):
        return record.plan


def task_of(
    folders: Sequence[Path], measurements: Measurements | None = None, seed: int = 0
) -> Task:
    return Task(inputs_of(folders), measurements, seed)


def decide(task: Task, method: str, **options: Any) -> Decision:
    return methods.run_method(task, {"name": method, **options})


def plan_with(
    layers: Mapping[str, LayerPlan], weights: tuple[float, ...] = (1.0,), **options: Any
) -> Plan:
    records = (RECORD,) * len(weights)
    return Plan(
        recipe=Recipe(name="none", method={}),
        zeroshot=RECORD,
        finetuned=records,
        weights=weights,
        layers=dict(layers),
        **options,
    )


def in_runs(inputs: Inputs, plan: Plan, run: int = writer.RUN) -> dict[str, Tensor]:
    """The tensors that a plan gives, by parameter, made in runs of so many elements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "RUN", run)
        tensors = merged_tensors(inputs, plan)
        names = [tensor.name for tensor in tensors]
        return dict(zip(names, writer.tensors_in_memory(tensors), strict=True))


def merge_masked(theta_0: Array, finetuned: Sequence[Array], **options: Any) -> Array:
    """Merge one parameter under masks, as the stream does."""
    return add_change(theta_0, merged_change(theta_0, finetuned, **options))


def merged(
    task: Task, decision: Decision, *, seed: int = 0, run: int = writer.RUN
) -> dict[str, Tensor]:
    """The tensors that a decision gives, by parameter."""
    settings = {"combine": decision.combine, "scores": dict(decision.scores), "seed": seed}
    plan = plan_with(decision.layers, decision.weights, **settings)
    plan.check(task.layers, task.shapes)
    return in_runs(task.inputs, plan, run)
