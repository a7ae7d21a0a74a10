"""The common properties of all masks, and each against a slow rule."""

import hashlib
from typing import Any

import numpy as np
import pytest

from clipmerge.errors import UsageError
from clipmerge.merging import bind_mask, merge_tensor, selection
from clipmerge.plugins import plugin_names
from tests.support.tasks import merge_masked

Array = np.ndarray[Any, Any]
Rows = list[list[float]]
KEY = "3:vision_model.a"
#: Masks that scale entries, or mix them.
SCALING = ("mag-prune", "random-rescale", "right-multiply", "spectral")
OPTIONS: dict[str, dict[str, Any]] = {
    "breadcrumbs": {"outliers": 0.25},
    "mag-prune": {"window": 0.4},
    "n-m": {"n": 2, "m": 3},
}


def example(shape: tuple[int, ...]) -> tuple[Array, Array]:
    """A change of small integers, so that entries tie in size, and a score."""
    generator = np.random.default_rng(0)
    change = generator.integers(-4, 5, shape).astype(np.float32)
    return change, generator.standard_normal(shape).astype(np.float32)


def bound(name: str, score: Array) -> Any:
    density = 1.0 if name in ("n-m", "right-multiply", "spectral") else 0.6
    filled_in = {} if name == "right-multiply" else {"score": score}  # whose score is a matrix
    return bind_mask(name, density, OPTIONS.get(name, {}), key=KEY, **filled_in)


def words(count: int) -> list[float]:
    """The draws of the key, one at a time, in [0, 1)."""
    digest = hashlib.sha256(KEY.encode()).digest()[:16]
    generator = np.random.Philox(key=int.from_bytes(digest, "little"))
    return [(int(generator.random_raw()) // 2**11) / 2**53 for _ in range(count)]


def first(sizes: list[float], count: int, skipped: int = 0) -> list[bool]:
    """The largest by magnitude, ties by index, after some that are skipped."""
    ranked = sorted(range(len(sizes)), key=lambda i: (-abs(sizes[i]), i))
    return [i in ranked[skipped : skipped + count] for i in range(len(sizes))]


def slow_n_m(row: list[float]) -> list[bool]:
    return [kept for start in range(0, len(row), 3) for kept in first(row[start : start + 3], 2)]


def slow_mag_prune(rows: Rows) -> list[float]:
    drawn = iter(words(sum(map(len, rows))))
    result = []
    for row in rows:
        ranked = sorted(range(len(row)), key=lambda i: (abs(row[i]), i))
        for i, value in enumerate(row):
            rank = ranked.index(i) / (len(row) - 1) if len(row) > 1 else 0.5
            chance = 0.6 + 0.4 * (rank - 0.5)
            result.append(value / chance if next(drawn) < chance else 0.0)
    return result


def slowly(name: str, change: Array, score: Array) -> list[float]:
    """Every rule in Python's floats, at density 0.6."""
    flat: list[float] = change.ravel().tolist()
    count, products = round(0.6 * len(flat)), (change * score).ravel().tolist()
    if name == "mag-prune":
        height = len(change) if change.ndim > 1 else 1
        return slow_mag_prune(change.reshape(height, -1).tolist())
    last = change.reshape(-1, change.shape[-1]).tolist()
    kept = {
        "breadcrumbs": lambda: first(flat, count, round(0.25 * len(flat))),
        "magnitude": lambda: first(flat, count),
        "n-m": lambda: [kept for row in last for kept in slow_n_m(row)],
        "random": lambda: [word < 0.6 for word in words(len(flat))],
        "random-rescale": lambda: [(word < 0.6) / 0.6 for word in words(len(flat))],
        "saliency": lambda: first(products, count),
    }[name]()
    return [value * share for value, share in zip(flat, kept, strict=True)]


@pytest.mark.parametrize("shape", [(6, 8), (37,), (4, 3, 2, 2), (5, 1), (1, 2)], ids=str)
@pytest.mark.parametrize(
    "name", [n for n in plugin_names("masks") if n not in ("right-multiply", "spectral")]
)
def test_a_mask_is_its_rule_entry_by_entry(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "DRAWS", 7)  # random numbers drawn at once
    change, score = example(shape)
    masked = bound(name, score)(change.copy())
    assert masked.shape == shape
    assert masked.ravel().tolist() == pytest.approx(slowly(name, change, score), rel=1e-6)


@pytest.mark.parametrize("name", [n for n in plugin_names("masks") if n not in SCALING])
def test_kept_entries_are_the_plain_merge_and_the_others_zero_shot(name: str) -> None:
    theta_0, score = example((6, 8))
    theta_1 = score * 3
    theta_0.flat[:4] = -0.0
    plain = merge_tensor(theta_0, [theta_1], alpha=0.3)
    merged = merge_masked(theta_0, [theta_1], alpha=0.3, mask=bound(name, score))
    kept = merged == plain
    assert kept.any()
    assert merged[~kept].tobytes() == theta_0[~kept].tobytes()  # negative zeros too


def test_right_multiply_is_the_product() -> None:
    change, score = example((4, 4))
    masked = bind_mask("right-multiply", 1.0, {}, score=score)(change)
    expected = np.einsum("ik,kj->ij", change.astype(float), score.astype(float))
    assert np.allclose(masked, expected, atol=1e-6)
    assert bind_mask("right-multiply", 1.0, {})(change) is change


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (4, 3, 2, 2), (5,)])
def test_spectral_scales_the_directions(shape: tuple[int, ...]) -> None:
    change = example(shape)[1]
    matrix = change.reshape(shape[0], -1)
    u, s, vh = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    high = 2 if len(shape) > 1 else 1  # a vector has one direction
    expected = (u * (s * np.where(np.arange(len(s)) < high, 0.7, 0.2))) @ vh
    masked = bind_mask("spectral", 1.0, {"rank": 2, "high": 0.7, "low": 0.2})(change)
    assert np.allclose(masked.reshape(matrix.shape), expected, atol=1e-6)


def test_options_out_of_range_are_refused() -> None:
    for density in (0.0, 1.1, float("nan"), "half"):
        with pytest.raises(UsageError, match="mask magnitude: option 'density' cannot be"):
            bind_mask("magnitude", density, {})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"probabilities from 0\.5 to 1\.1, which must"):
        bind_mask("mag-prune", 0.8, {"window": 0.6}, key=KEY)(example((3, 3))[0])
