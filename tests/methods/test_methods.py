"""The data-free methods against their formulas, written out on dense matrices."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clipmerge.errors import CheckpointError, RecipeError
from clipmerge.methods import Task
from tests.support.raw_safetensors import edit
from tests.support.tasks import decide, merged, task_of
from tests.support.tiny_clip import Folders

BLOCKS = 3


@pytest.fixture(scope="module")
def task(pair: Folders) -> Task:
    return task_of(pair)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_wise_ft_is_an_error_of_one_line(task: Task, pair: Folders, alpha: float) -> None:
    zeroshot, finetuned = (load_file(folder / "model.safetensors") for folder in pair)
    for name, tensor in merged(task, decide(task, "wise-ft", alpha=alpha)).items():
        expected = (1 - alpha) * zeroshot[name].double() + alpha * finetuned[name].double()
        assert torch.allclose(tensor.double(), expected, atol=1e-7, rtol=1e-6)


def test_wise_ft_averages_several(family: list[Path]) -> None:
    task = task_of(family[:3])
    base, *others = (load_file(folder / "model.safetensors") for folder in family[:3])
    for name, tensor in merged(task, decide(task, "wise-ft", alpha=0.5)).items():
        average = sum(other[name].double() for other in others) / 2
        assert torch.allclose(tensor.double(), (base[name].double() + average) / 2, atol=1e-6)
    with pytest.raises(
        RecipeError, match="monosoup: takes one fine-tuned checkpoint; for several use 'wise-ft'"
    ):
        decide(task, "monosoup")


@pytest.mark.parametrize(("alpha", "slope"), [(0.5, None), (0.2, None), (0.1, 0.4), (1.0, -0.5)])
def test_lines_rises_linearly_in_each_tower(task: Task, alpha: float, slope: float | None) -> None:
    layers = decide(task, "lines", alpha=alpha, slope=slope).layers
    rise = 1 - alpha if slope is None else slope
    for tower in ("vision", "text"):
        for block in range(BLOCKS):
            for half in ("attn", "mlp"):
                assert layers[f"{tower}.{block}.{half}"].alpha == pytest.approx(
                    alpha + rise * block / (BLOCKS - 1)
                )
    for name in ("vision.embeddings", "text.norm", "logit_scale", "vision.projection"):
        assert layers[name].alpha == alpha


def dense_monosoup(
    task_vector: np.ndarray[Any, Any], rank: str, energy: float
) -> np.ndarray[Any, Any]:
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


@pytest.mark.parametrize(
    ("rank", "energy"), [("effective", 0.8), ("energy", 0.8), ("energy", 0.3), ("energy", 1.0)]
)
def test_monosoup_is_its_formula_on_every_matrix(
    task: Task, pair: Folders, rank: str, energy: float
) -> None:
    zeroshot, finetuned = (load_file(folder / "model.safetensors") for folder in pair)
    decision = decide(task, "monosoup", rank=rank, energy=energy)
    for name, tensor in merged(task, decision).items():
        base = zeroshot[name].double().numpy()
        change = dense_monosoup(finetuned[name].double().numpy() - base, rank, energy)
        assert np.allclose(tensor.double().numpy(), base + change, atol=1e-6), name
    conv = "vision_model.embeddings.patch_embedding.weight"
    assert conv in decision.layers["vision.embeddings"].parameters
    assert zeroshot[conv].ndim == 4


@pytest.mark.parametrize(("which", "value"), [(0, float("nan")), (1, float("inf"))])
def test_monosoup_names_a_broken_tensor(copies: Folders, which: int, value: float) -> None:
    key = "text_projection.weight"
    broken = load_file(copies[which] / "model.safetensors")[key]
    broken[3, 5] = value
    edit(copies[which], **{key: broken})
    with pytest.raises(CheckpointError, match=rf"{copies[which]}: tensor {key} holds (NaN|Inf)"):
        decide(task_of(copies), "monosoup")


def test_monosoup_of_equal_models_changes_nothing(pair: Folders) -> None:
    same = task_of((pair[0], pair[0]))
    zeroshot = load_file(pair[0] / "model.safetensors")
    for name, tensor in merged(same, decide(same, "monosoup")).items():
        assert torch.equal(tensor, zeroshot[name])
