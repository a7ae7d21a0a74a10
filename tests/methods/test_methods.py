"""The data-free methods, each against a slow rule on dense matrices."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.utils import merge_utils
from safetensors.numpy import load_file
from scipy import integrate, optimize

from clipmerge.errors import UsageError
from clipmerge.merging import bind_mask, disjoint_mean
from clipmerge.merging.selection import RandomKey
from clipmerge.methods.dg_hard import _noise_threshold as dg_hard_threshold
from tests.support.command import done
from tests.support.tasks import decide, merge_masked, merged, task_of
from tests.support.tiny_clip import Folders, layer_of

Array = np.ndarray[Any, Any]
BLOCKS = 3


def slow_lines(name: str, change: Array, alpha: float, slope: float | None = None) -> Array:
    _, *block = layer_of(name).split(".")
    depth = int(block[0]) if len(block) == 2 else 0
    rise = 1 - alpha if slope is None else slope
    return change * (alpha + rise * depth / (BLOCKS - 1))


def scaled_directions(change: Array, scale: Any) -> Array:
    """Multiply the singular values of a matrix."""
    u, s, vh = np.linalg.svd(change.reshape(len(change), -1), full_matrices=False)
    return np.reshape((u * (s * scale(s))) @ vh, change.shape)


def slow_monosoup(
    name: str, change: Array, alpha: float, rank: str = "effective", energy: float = 0.8
) -> Array:
    def scale(s: Array) -> Array:
        shares, p = (s**2).cumsum() / (s**2).sum(), s / s.sum()
        k = next(k for k in range(1, len(s) + 1) if shares[k - 1] >= energy - 1e-12)
        if rank == "effective":
            k = math.ceil(math.exp(-sum(x * math.log(x) for x in p.tolist() if x > 0)))
        ratio = (s[k] / s[0]) ** 2 if k < len(s) else 0.0
        low = ratio + (1 - ratio) * math.sqrt(max(0.0, 1 - shares[k - 1]))
        return np.where(np.arange(len(s)) < k, 1 - low, low)

    return alpha * (change if change.ndim < 2 else scaled_directions(change, scale))


def mu(beta: float) -> float:
    """Root of the median of the Marchenko-Pastur distribution, by quadrature and bisection."""
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2

    def density(x: float) -> float:
        return math.sqrt(max(0.0, (high - x) * (x - low))) / (2 * math.pi * beta * x)

    def excess(x: float) -> float:
        return float(integrate.quad(density, x, high)[0]) - 0.5

    return math.sqrt(optimize.brentq(excess, low, high, xtol=1e-12))


def slow_dg_hard(name: str, change: Array, alpha: float) -> Array:
    if change.ndim != 2 or change.size < 1024:
        return alpha * change
    beta = min(change.shape) / max(change.shape)
    root = math.sqrt(beta**2 + 14 * beta + 1)
    omega = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + root))
    limit = omega / mu(beta)
    return alpha * scaled_directions(change, lambda s: s > limit * sorted(s)[(len(s) - 1) // 2])


@pytest.mark.parametrize(
    ("method", "rule", "options"),
    [
        ("lines", slow_lines, {"alpha": 0.5}),
        ("lines", slow_lines, {"alpha": 0.1, "slope": 0.4}),
        ("monosoup", slow_monosoup, {"alpha": 0.5}),
        ("monosoup", slow_monosoup, {"alpha": 1.0, "rank": "energy", "energy": 0.3}),
        ("monosoup", slow_monosoup, {"alpha": 1.0, "rank": "energy", "energy": 1.0}),
        ("dg-hard", slow_dg_hard, {"alpha": 0.5}),
    ],
)
def test_a_method_for_one_model_is_its_formula(
    pair: Folders, method: str, rule: Any, options: dict[str, Any]
) -> None:
    zeroshot, finetuned = (load_file(folder / "model.safetensors") for folder in pair)
    task = task_of(pair)
    for name, tensor in merged(task, decide(task, method, **options)).items():
        base = zeroshot[name].astype(np.float64)
        change = rule(name, finetuned[name] - base, **options)
        assert np.allclose(tensor.numpy(), base + change, atol=1e-6), name


def test_a_method_for_one_model_refuses_several_and_equal_models_stay(family: list[Path]) -> None:
    with pytest.raises(UsageError, match="method monosoup: takes one fine-tuned checkpoint"):
        decide(task_of(family), "monosoup")
    task = task_of([family[0], family[0]])
    base = load_file(family[0] / "model.safetensors")
    for name, tensor in merged(task, decide(task, "monosoup")).items():
        assert np.array_equal(tensor.numpy(), base[name])


def test_dg_hard_has_the_published_threshold() -> None:
    # for square matrices and noise of unknown strength: 2.858 times the median
    assert dg_hard_threshold(1.0) == pytest.approx(2.858, abs=5e-4)


# --- several task vectors ---


def slow_mean(vectors: list[Array]) -> Array:
    """The mean of those that have the sign of their sum, entry by entry."""
    result = []
    for entries in zip(*(vector.ravel().tolist() for vector in vectors), strict=True):
        agree = [value for value in entries if value and (value > 0) == (sum(entries) >= 0)]
        result.append(sum(agree) / len(agree) if agree else 0.0)
    return np.reshape(result, vectors[0].shape)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("method", "mask", "density", "combine"),
    [
        ("wise-ft", None, 1, lambda vectors: sum(vectors) / len(vectors)),
        ("task-arithmetic", None, 1, sum),
        ("breadcrumbs", "breadcrumbs", 0.15, sum),
        ("dare", "random-rescale", 0.5, sum),
        ("della", "mag-prune", 0.5, slow_mean),
        ("ties", "magnitude", 0.2, slow_mean),
    ],
)
def test_a_method_for_several_models_masks_and_combines_their_changes(
    family: list[Path], method: str, mask: str | None, density: float, combine: Any, count: int
) -> None:
    task = task_of(family[: 1 + count])
    if count == 1 and method in ("ties", "task-arithmetic"):
        with pytest.raises(UsageError, match=f"method {method}: needs at least two fine-tuned"):
            decide(task, method)
        return
    # a mask sees whole parameters whatever the runs
    result = merged(task, decide(task, method, alpha=0.7), seed=3, run=100)
    base, *others = (load_file(folder / "model.safetensors") for folder in family[: 1 + count])
    for name, value in base.items():
        vectors = [other[name] - value for other in others]
        if mask and value.size > 1:
            keys = [RandomKey(3, name).for_checkpoint(which) for which in range(count)]
            bound = [bind_mask(mask, density, {}, key=key) for key in keys]
            vectors = [keep(vector) for keep, vector in zip(bound, vectors, strict=True)]
        expected = value + 0.7 * combine(vectors)
        assert np.allclose(result[name].numpy(), expected, atol=1e-6), name
        assert result[name].shape == value.shape


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 2.0, 1.5)])
def test_peft_says_the_same_of_ties(weights: tuple[float, ...]) -> None:
    stack = np.random.default_rng(0).standard_normal((3, 400, 500)).astype(np.float32)
    expected = merge_utils.ties(list(torch.from_numpy(stack)), torch.tensor(weights), 0.25)
    vectors = [bind_mask("magnitude", 0.25, {})(vector) for vector in stack.copy()]
    assert np.allclose(disjoint_mean(vectors, weights), expected.numpy(), atol=1e-6)


def test_the_sign_of_a_sum_of_zero_is_positive_and_the_mask_of_a_layer_comes_last() -> None:
    theta_0 = np.zeros((2, 4), np.float32)
    finetuned = [np.array([row] * 2, np.float32) for row in ([4.0, 1, 2, 0], [2.0, -3, -2, 1])]
    given: Any = {"alpha": 2.0, "weights": (1.0, 1.0), "elect_signs": True}
    assert merge_masked(theta_0, finetuned, **given).tolist() == [[6, -6, 4, 2]] * 2
    masked = merge_masked(theta_0, finetuned, mask=bind_mask("magnitude", 0.25, {}), **given)
    assert masked.tolist() == [[6, -6, 0, 0], [0, 0, 0, 0]]


def test_a_window_too_wide_is_refused_before_merging(family: list[Path]) -> None:
    with pytest.raises(UsageError, match=r"method della: density 0\.05 and window 0\.2 give"):
        decide(task_of(family), "della", density=0.05)


def test_a_plan_gives_the_bytes_of_a_merge_and_another_seed_others(
    family: list[Path], tmp_path: Path
) -> None:
    given = (*family, "--recipe", "della", "--output")
    done("merge", *given, tmp_path / "merged")
    done("merge", *given, tmp_path / "other", "--seed", 1)
    done("plan", *given, tmp_path / "plan.json")
    done("apply", tmp_path / "plan.json", "--output", tmp_path / "by-plan")
    merged, other, by_plan = (
        (tmp_path / name / "model.safetensors").read_bytes()
        for name in ("merged", "other", "by-plan")
    )
    assert merged == by_plan != other
