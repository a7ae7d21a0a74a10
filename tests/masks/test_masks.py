"""The common properties of all masks, and each rule against a slow one."""

import inspect
from typing import Any

import numpy as np
import pytest

from clipmerge.errors import UsageError
from clipmerge.merging import bind_mask, merge_tensor
from clipmerge.merging.selection import RandomKey, keep_random
from clipmerge.plugins import load_plugin, plugin_names
from tests.support.tasks import merge_masked

Array = np.ndarray[Any, Any]
MASKS = plugin_names("masks")
RANDOM = [
    name for name in MASKS if "key" in inspect.signature(load_plugin("masks", name)).parameters
]
SHAPES = [(6, 8), (37,), (4, 3, 2, 2), (1, 2)]


def example(shape: tuple[int, ...], seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape).astype(np.float32) for _ in range(3)]


def bound(name: str, score: Array, *, density: float = 0.5, key: RandomKey | None = None) -> Any:
    filled: dict[str, Any] = {"score": score, "key": key or RandomKey(0, "a")}
    if name == "right-multiply":  # its score has another shape; without one it keeps everything
        del filled["score"]
    return bind_mask(name, density, {}, **filled)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", [n for n in MASKS if n not in ("spectral", "random-rescale")])
def test_what_is_kept_is_the_plain_merge_and_the_rest_zero_shot(
    name: str, shape: tuple[int, ...]
) -> None:
    theta_0, theta_1, score = example(shape)
    theta_0.flat[0] = -0.0
    plain = merge_tensor(theta_0, [theta_1], alpha=0.3)
    merged = merge_masked(theta_0, [theta_1], alpha=0.3, mask=bound(name, score))
    kept = merged == plain
    assert merged[~kept].tobytes() == theta_0[~kept].tobytes()  # negative zeros too
    assert kept.any() or name in RANDOM


def test_random_masks_are_the_draws_of_their_key() -> None:
    change, key = example((30, 30))[0], RandomKey(1, "a")
    kept = np.where(keep_random((30, 30), 0.25, key), change, 0)
    assert np.array_equal(bind_mask("random", 0.25, {}, key=key)(change.copy()), kept)
    assert np.array_equal(bind_mask("random-rescale", 0.25, {}, key=key)(change), 4 * kept)


def test_what_magnitude_and_saliency_keep() -> None:
    change = np.array([[1.0, -2.0, 2.0], [2.0, 0.5, -2.0]])  # ties go by index
    kept = bind_mask("magnitude", 0.5, {})(change)
    assert kept.tolist() == [[0, -2, 2], [2, 0, 0]]
    # products 2, 3, 2, 1.5: neither factor alone, nor a signed product, nor a later tie keeps the
    # first two
    change, score = np.array([1.0, -3.0, 2.0, 0.1]), np.array([-2.0, 1.0, 1.0, -15.0])
    assert bind_mask("saliency", 0.5, {}, score=score)(change).tolist() == [1, -3, 0, 0]


@pytest.mark.parametrize("shape", [(4, 8), (3, 10), (7,), (2, 3, 5)])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (1, 4), (3, 3)])
def test_n_of_every_m_are_kept(shape: tuple[int, ...], n: int, m: int) -> None:
    change = np.random.default_rng(1).integers(-2, 3, shape).astype(np.float32)
    expected = []
    for row in change.reshape(-1, shape[-1]).tolist():
        for start in range(0, len(row), m):
            run = row[start : start + m]
            best = sorted(range(len(run)), key=lambda i: (-abs(run[i]), i))[:n]
            expected += [value if i in best else 0.0 for i, value in enumerate(run)]
    assert bind_mask("n-m", 1.0, {"n": n, "m": m})(change).ravel().tolist() == expected


def test_right_multiply_entry_by_entry() -> None:
    change, score = example((3, 4))[0], example((4, 4))[1]
    masked = bind_mask("right-multiply", 1.0, {}, score=score)(change)
    a, b = change.astype(float).tolist(), score.astype(float).tolist()
    expected = [[sum(a[i][k] * b[k][j] for k in range(4)) for j in range(4)] for i in range(3)]
    assert np.allclose(masked, expected, atol=1e-6)


def test_spectral_scales_the_directions() -> None:
    change = example((6, 9))[0]
    u, s, vh = np.linalg.svd(change.astype(np.float64), full_matrices=False)
    expected = (u * (s * [0.7, 0.7, 0.2, 0.2, 0.2, 0.2])) @ vh
    masked = bind_mask("spectral", 1.0, {"rank": 2, "high": 0.7, "low": 0.2})(change)
    assert np.allclose(masked, expected, atol=1e-6)


def test_options_that_there_are_not_or_out_of_range_are_refused() -> None:
    for density in (0.0, -0.1, 1.1, float("nan"), "half"):
        with pytest.raises(UsageError, match="mask magnitude: option 'density' cannot be"):
            bind_mask("magnitude", density, {})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"mask n-m: no option 'nn'.*\(options: n, m\)"):
        bind_mask("n-m", 1.0, {"nn": 3})
