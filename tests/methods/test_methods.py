"""The data-free methods against their formulas, written out on dense matrices."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clipmerge.checkpoint import align_checkpoints, open_checkpoint
from clipmerge.errors import CheckpointError, RecipeError
from clipmerge.merging.stream import merged_tensors
from clipmerge.methods import Decision, Task
from clipmerge.planning.plan import Plan
from clipmerge.planning.provenance import SourceRecord
from clipmerge.plugins import load_plugin, plugin_names
from tests.support.raw_safetensors import edit

Folders = tuple[Path, Path]
BLOCKS = 3


@pytest.fixture(scope="module")
def task(pair: Folders) -> Task:
    zeroshot, finetuned = (open_checkpoint(str(folder)) for folder in pair)
    return Task(align_checkpoints(zeroshot, [finetuned]))


def decide(task: Task, method: str, **options: Any) -> Decision:
    return load_plugin("methods", method)(task, **options)


def merged(task: Task, decision: Decision) -> dict[str, torch.Tensor]:
    record = SourceRecord(source="x", files={})
    finetuned = (record,) * len(task.inputs.finetuned)
    plan = Plan(recipe={}, zeroshot=record, finetuned=finetuned, weights=decision.weights, layers=decision.layers)
    plan = plan.checked(task.layers)
    return {t.key: t.tensor() for t in merged_tensors(task.inputs, plan)}


def test_every_method_that_needs_no_data_names_every_layer(task: Task) -> None:
    free = {"wise-ft", "lines", "monosoup"}
    assert free <= set(plugin_names("methods"))
    for name in free:
        decision = decide(task, name)
        assert decision.layers.keys() == task.layers.keys()
        assert decision.verdict
        assert all(layer.reason for layer in decision.layers.values())


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_wise_ft_is_one_line(task: Task, pair: Folders, alpha: float) -> None:
    zeroshot, finetuned = (load_file(folder / "model.safetensors") for folder in pair)
    for name, tensor in merged(task, decide(task, "wise-ft", alpha=alpha)).items():
        expected = (1 - alpha) * zeroshot[name].double() + alpha * finetuned[name].double()
        assert torch.allclose(tensor.double(), expected, atol=1e-7, rtol=1e-6)


def test_wise_ft_averages_several(pair: Folders, tmp_path: Path) -> None:
    other = Path(shutil.copytree(pair[1], tmp_path / "other"))
    tensors = [load_file(folder / "model.safetensors") for folder in pair]
    edit(other, **{name: tensor + 0.1 for name, tensor in tensors[1].items()})
    sources = [open_checkpoint(str(folder)) for folder in (*pair, other)]
    task = Task(align_checkpoints(sources[0], sources[1:]))
    for name, tensor in merged(task, decide(task, "wise-ft", alpha=0.5)).items():
        average = (tensors[1][name].double() + (tensors[1][name] + 0.1).double()) / 2
        expected = 0.5 * tensors[0][name].double() + 0.5 * average
        assert torch.allclose(tensor.double(), expected, atol=1e-6)
    for method in ("monosoup", "straggler-outlier"):
        with pytest.raises(RecipeError, match="takes one fine-tuned checkpoint; for several use 'wise-ft'"):
            decide(task, method)


@pytest.mark.parametrize(("alpha", "slope"), [(0.5, None), (0.2, None), (0.1, 0.4), (1.0, -0.5)])
def test_lines_rises_linearly_in_each_tower(task: Task, alpha: float, slope: float | None) -> None:
    layers = decide(task, "lines", alpha=alpha, slope=slope).layers
    rise = 1 - alpha if slope is None else slope
    for tower in ("vision", "text"):
        for block in range(BLOCKS):
            for half in ("attn", "mlp"):
                assert layers[f"{tower}.{block}.{half}"].alpha == pytest.approx(alpha + rise * block / (BLOCKS - 1))
    for name in ("vision.embeddings", "text.norm", "logit_scale", "vision.projection"):
        assert layers[name].alpha == alpha


def dense_monosoup(task_vector: np.ndarray[Any, Any], rank: str, energy: float) -> np.ndarray[Any, Any]:
    """The paper's formulas on one matrix, in numpy."""
    if task_vector.ndim < 2:
        return task_vector
    matrix = task_vector.reshape(task_vector.shape[0], -1)
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    if rank == "effective":
        p = s / s.sum()
        k = math.ceil(math.exp(-sum(x * math.log(x) for x in p.tolist() if x > 0)))
    else:
        k = next(k for k in range(1, len(s) + 1) if (s[:k] ** 2).sum() / (s**2).sum() >= energy)
    share = (s[:k] ** 2).sum() / (s**2).sum()
    ratio = (s[k] / s[0]) ** 2 if k < len(s) else 0.0
    low = ratio + (1 - ratio) * math.sqrt(max(0.0, 1 - share))
    scale = np.where(np.arange(len(s)) < k, 1 - low, low)
    return ((u * (s * scale)) @ vh).reshape(task_vector.shape)


@pytest.mark.parametrize(("rank", "energy"), [("effective", 0.8), ("energy", 0.8), ("energy", 0.3), ("energy", 1.0)])
def test_monosoup_is_its_formula_on_every_matrix(task: Task, pair: Folders, rank: str, energy: float) -> None:
    zeroshot, finetuned = (load_file(folder / "model.safetensors") for folder in pair)
    decision = decide(task, "monosoup", rank=rank, energy=energy)
    for name, tensor in merged(task, decision).items():
        base = zeroshot[name].double().numpy()
        change = dense_monosoup(finetuned[name].double().numpy() - base, rank, energy)
        assert np.allclose(tensor.double().numpy(), base + change, atol=1e-6), name
    conv = "vision_model.embeddings.patch_embedding.weight"
    assert conv in decision.layers["vision.embeddings"].parameters
    assert zeroshot[conv].ndim == 4


def test_monosoup_of_equal_models_changes_nothing(pair: Folders, tmp_path: Path) -> None:
    copy = shutil.copytree(pair[0], tmp_path / "copy")
    same = Task(align_checkpoints(open_checkpoint(str(pair[0])), [open_checkpoint(str(copy))]))
    zeroshot = load_file(pair[0] / "model.safetensors")
    for name, tensor in merged(same, decide(same, "monosoup")).items():
        assert torch.equal(tensor, zeroshot[name])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_monosoup_names_a_broken_tensor(pair: Folders, tmp_path: Path, which: int, value: float) -> None:
    folders = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in pair]
    key = "text_projection.weight"
    broken = load_file(folders[which] / "model.safetensors")[key]
    broken[3, 5] = value
    edit(folders[which], **{key: broken})
    task = Task(align_checkpoints(*(lambda a, b: (a, [b]))(*(open_checkpoint(str(f)) for f in folders))))
    with pytest.raises(CheckpointError, match=rf"{folders[which]}: tensor {key} holds (NaN|Inf)"):
        decide(task, "monosoup")


def test_a_straggler_method_without_measurements_says_what_is_missing(task: Task) -> None:
    with pytest.raises(RecipeError, match="straggler-outlier: needs a `measure:` in the recipe"):
        decide(task, "straggler-outlier")
