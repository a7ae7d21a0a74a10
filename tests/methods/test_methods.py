"""The data-free methods, each against a short rule on dense matrices."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy import integrate, optimize

from clipmerge.errors import UsageError
from clipmerge.merging import bind_mask
from tests.support.tasks import decide, merge_masked, merged, task_of
from tests.support.tiny_clip import layer_of

Array = np.ndarray[Any, Any]
#: The change of a parameter, from its name and its task vectors.
Rule = Callable[[str, list[Array]], Array]
BLOCKS = 2


def lines(first: float, rise: float) -> Rule:
    def change(name: str, vectors: list[Array]) -> Array:
        _, *block = layer_of(name).split(".")
        depth = int(block[0]) if len(block) == 2 else 0
        return mean(name, vectors) * (first + rise * depth / (BLOCKS - 1))

    return change


def scaled_directions(change: Array, scale: Callable[[Array], Array]) -> Array:
    """Multiply the singular values of a matrix."""
    u, s, vh = np.linalg.svd(change.reshape(len(change), -1), full_matrices=False)
    return np.reshape((u * (s * scale(s))) @ vh, change.shape)


def monosoup(energy: float | None) -> Rule:
    def scale(s: Array) -> Array:
        shares, p = (s**2).cumsum() / (s**2).sum(), s / s.sum()
        if energy is None:
            k = math.ceil(math.exp(-sum(x * math.log(x) for x in p.tolist() if x > 0)))
        else:
            k = next(k for k in range(1, len(s) + 1) if shares[k - 1] >= energy - 1e-12)
        ratio = (s[k] / s[0]) ** 2 if k < len(s) else 0.0
        low = ratio + (1 - ratio) * math.sqrt(max(0.0, 1 - shares[k - 1]))
        return np.where(np.arange(len(s)) < k, 1 - low, low)

    return lambda _, vectors: (
        vectors[0] if vectors[0].ndim < 2 else scaled_directions(vectors[0], scale)
    )


def dg_hard(_: str, vectors: list[Array]) -> Array:
    (change,) = vectors
    if change.ndim != 2 or change.size < 1024:
        return change
    beta = min(change.shape) / max(change.shape)
    omega = 2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1))
    limit = math.sqrt(omega / marchenko_pastur_median(beta))
    return scaled_directions(change, lambda s: s > limit * sorted(s)[(len(s) - 1) // 2])


def marchenko_pastur_median(beta: float) -> float:
    """By quadrature and bisection."""
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2

    def density(x: float) -> float:
        return math.sqrt(max(0.0, (high - x) * (x - low))) / (2 * math.pi * beta * x)

    def excess(x: float) -> float:
        return float(integrate.quad(density, x, high)[0]) - 0.5

    return float(optimize.brentq(excess, low, high, xtol=1e-12))


def mean(_: str, vectors: list[Array]) -> Array:
    return np.asarray(sum(vectors) / len(vectors))


def add(_: str, vectors: list[Array]) -> Array:
    return np.asarray(sum(vectors))


def elect(_: str, vectors: list[Array]) -> Array:
    """The mean of those that have the sign of their sum, entry by entry."""
    result = []
    for entries in zip(*(vector.ravel().tolist() for vector in vectors), strict=True):
        agree = [value for value in entries if value and (value > 0) == (sum(entries) >= 0)]
        result.append(sum(agree) / len(agree) if agree else 0.0)
    return np.reshape(result, vectors[0].shape)


def masked(mask: str, density: float, combine: Rule) -> Rule:
    def change(name: str, vectors: list[Array]) -> Array:
        if vectors[0].size > 1:
            keys = [f"3#{which}:{name}" for which in range(len(vectors))]
            keeps = [bind_mask(mask, density, {}, key=key) for key in keys]
            vectors = [
                keep(vector.astype(np.float32)) for keep, vector in zip(keeps, vectors, strict=True)
            ]
        return combine(name, vectors)

    return change


@pytest.mark.parametrize(
    ("method", "counts", "rule", "options"),
    [
        ("wise-ft", (1, 3), mean, {}),
        ("lines", (1, 3), lines(1, 3 / 7), {"slope": 0.3}),
        ("monosoup", (1,), monosoup(None), {}),
        ("monosoup", (1,), monosoup(0.3), {"rank": "energy", "energy": 0.3}),
        ("monosoup", (1,), monosoup(1.0), {"rank": "energy", "energy": 1.0}),
        ("dg-hard", (1,), dg_hard, {}),
        ("task-arithmetic", (3,), add, {}),
        ("breadcrumbs", (1, 3), masked("breadcrumbs", 0.15, add), {}),
        ("dare", (1, 3), masked("random-rescale", 0.5, add), {}),
        ("della", (1, 3), masked("mag-prune", 0.5, elect), {}),
        ("ties", (3,), masked("magnitude", 0.2, elect), {}),
    ],
)
def test_a_method_is_its_rule(
    family: list[Path],
    pair: tuple[Path, Path],
    method: str,
    counts: tuple[int, ...],
    rule: Rule,
    options: dict[str, Any],
) -> None:
    for count in (1, 3):
        folders = family[: 1 + count]
        if method == "dg-hard" and count == 1:
            folders = [*pair]  # it splits only matrices of at least 1,024 entries
        task = task_of(folders)
        if count not in counts:
            message = "needs at least two" if count == 1 else "takes one"
            with pytest.raises(
                UsageError, match=f"method {method}: {message} fine-tuned checkpoint"
            ):
                decide(task, method)
            continue
        decision = decide(task, method, alpha=0.7, **options)
        # a mask sees whole parameters whatever the runs
        result = merged(task, decision, seed=3, run=100)
        base, *others = (load_file(folder / "model.safetensors") for folder in folders)
        for name, value in base.items():
            start = value.astype(np.float64)
            change = 0.7 * rule(name, [other[name] - start for other in others])
            assert np.allclose(result[name].numpy(), value + change, atol=1e-6), name
            assert result[name].shape == value.shape


def test_equal_models_stay(family: list[Path]) -> None:
    task = task_of([family[0], family[0]])
    base = load_file(family[0] / "model.safetensors")
    for name, tensor in merged(task, decide(task, "monosoup")).items():
        assert np.array_equal(tensor.numpy(), base[name])


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
