"""The data-free methods against their formulas, written out on dense matrices."""

import math
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from scipy import integrate, optimize

from clipmerge.methods import Task
from clipmerge.methods.dg_hard import _noise_threshold as dg_hard_threshold
from tests.support.tasks import decide, merged, task_of
from tests.support.tiny_clip import Folders

BLOCKS = 3


@pytest.fixture(scope="module")
def task(pair: Folders) -> Task:
    return task_of(pair)


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


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize(
    ("rank", "energy"), [("effective", 0.8), ("energy", 0.8), ("energy", 0.3), ("energy", 1.0)]
)
def test_monosoup_is_its_formula_on_every_matrix(
    task: Task, pair: Folders, rank: str, energy: float, alpha: float
) -> None:
    zeroshot, finetuned = (load_file(folder / "model.safetensors") for folder in pair)
    decision = decide(task, "monosoup", rank=rank, energy=energy, alpha=alpha)
    for name, tensor in merged(task, decision).items():
        base = zeroshot[name].double().numpy()
        change = dense_monosoup(finetuned[name].double().numpy() - base, rank, energy)
        assert np.allclose(tensor.double().numpy(), base + alpha * change, atol=1e-6), name
    conv = "vision_model.embeddings.patch_embedding.weight"
    assert conv in decision.layers["vision.embeddings"].parameters
    assert zeroshot[conv].ndim == 4


def mu(beta: float) -> float:
    """Root of the median of the Marchenko-Pastur distribution, by quadrature and bisection."""
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2

    def density(x: float) -> float:
        return math.sqrt(max(0.0, (high - x) * (x - low))) / (2 * math.pi * beta * x)

    def excess(x: float) -> float:
        return float(integrate.quad(density, x, high)[0]) - 0.5

    return math.sqrt(optimize.brentq(excess, low, high, xtol=1e-12))


def dense_dg_hard(change: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """DG-Hard on one matrix, by numpy's SVD."""
    if change.ndim != 2 or change.size < 1024:
        return change
    u, s, vh = np.linalg.svd(change, full_matrices=False)
    beta = min(change.shape) / max(change.shape)
    root = math.sqrt(beta**2 + 14 * beta + 1)
    omega = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + root))
    median = sorted(s)[(len(s) - 1) // 2]
    return (u * np.where(s > omega / mu(beta) * median, s, 0)) @ vh


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_dg_hard_is_its_formula_on_every_matrix(task: Task, pair: Folders, alpha: float) -> None:
    zeroshot, finetuned = (load_file(folder / "model.safetensors") for folder in pair)
    decision = decide(task, "dg-hard", alpha=alpha)
    changed = 0
    for name, tensor in merged(task, decision).items():
        base = zeroshot[name].double().numpy()
        whole = finetuned[name].double().numpy() - base
        change = dense_dg_hard(whole)
        changed += not np.allclose(change, whole)
        assert np.allclose(tensor.double().numpy(), base + alpha * change, atol=1e-6), name
    assert changed > 10


def test_dg_hard_has_the_published_threshold() -> None:
    # for square matrices and noise of unknown strength: 2.858 times the median
    assert dg_hard_threshold(1.0) == pytest.approx(2.858, abs=5e-4)
