"""The common properties of all masks, and each rule against a slow one."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipmerge.errors import RecipeError
from clipmerge.merging.selection import RandomKey
from clipmerge.merging.tensor import apply_mask, complete_mask_options, merge_tensor
from clipmerge.plugins import load_plugin, plugin_names, plugin_options

MASKS = plugin_names("masks")
WITH_DENSITY = [name for name in MASKS if "density" in plugin_options("masks", name)]
RANDOM = [
    name for name in MASKS if "key" in inspect.signature(load_plugin("masks", name)).parameters
]
SHAPES = [(6, 8), (37,), (4, 3, 2, 2), (1, 2)]


def example(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    theta_0, theta_1, score = (torch.randn(shape, generator=generator) for _ in range(3))
    return theta_0, theta_1, score


def inputs(
    name: str, score: Tensor, *, density: float = 0.5, key: RandomKey | None = None
) -> dict[str, Any]:
    wanted = set(inspect.signature(load_plugin("masks", name)).parameters)
    if name == "right-multiply":  # its score has another shape; without one it keeps everything
        wanted.remove("score")
    filled = {"score": score, "key": key or RandomKey(0, "a")}
    return {
        **complete_mask_options(name, density, {}),
        **{k: v for k, v in filled.items() if k in wanted},
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_shape_dtype_and_inputs_survive_and_runs_are_equal(
    name: str, shape: tuple[int, ...]
) -> None:
    theta_0, theta_1, score = example(shape)
    change = theta_1 - theta_0
    before = [each.clone() for each in (theta_0, change, score)]
    results = [
        apply_mask(name, change.clone(), theta_0, inputs(name, score)) for _ in range(2)
    ]  # it may write there
    assert results[0].shape == change.shape
    assert results[0].dtype == change.dtype
    assert torch.equal(*results)
    assert all(torch.equal(a, b) for a, b in zip(before, (theta_0, change, score), strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", [n for n in MASKS if n not in ("spectral", "random-rescale")])
def test_what_is_kept_is_the_plain_merge_and_the_rest_zero_shot(
    name: str, shape: tuple[int, ...]
) -> None:
    theta_0, theta_1, score = example(shape)
    plain = merge_tensor(theta_0, theta_1, alpha=0.3)
    merged = merge_tensor(theta_0, theta_1, alpha=0.3, mask=name, **inputs(name, score))
    kept = merged == plain
    assert torch.equal(merged[~kept], theta_0[~kept])
    assert int(kept.sum()) > 0 or name in RANDOM


@pytest.mark.parametrize("name", ["magnitude", "saliency", "random", "random-rescale", "n-m"])
def test_negative_zeros_that_are_not_kept_stay_negative(name: str) -> None:
    theta_0, theta_1 = torch.full((4, 8), -0.0), example((4, 8))[1]
    merged = merge_tensor(
        theta_0, theta_1, alpha=0.3, mask=name, **inputs(name, example((4, 8))[2])
    )
    gone = merged == 0
    assert 0 < int(gone.sum()) < 32
    assert bool(torch.signbit(merged[gone]).all())


@pytest.mark.parametrize("density", [1e-6, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("name", WITH_DENSITY)
def test_density_is_respected(name: str, density: float) -> None:
    theta_0, theta_1, score = example((200, 100))
    change = theta_1 - theta_0
    masked = apply_mask(name, change.clone(), theta_0, inputs(name, score, density=density))
    share = float((masked != 0).double().mean())
    slack = 5 * (density * (1 - density) / 20_000) ** 0.5 if name in RANDOM else 0.5 / 20_000
    assert share == pytest.approx(density, abs=slack + 1 / 20_000)
    if density == 1:
        assert torch.equal(masked, change)


@pytest.mark.parametrize("name", RANDOM)
def test_random_masks_depend_on_seed_and_name_alone(name: str) -> None:
    theta_0, theta_1, score = example((30, 30))
    change = theta_1 - theta_0

    def masked(seed: int, parameter: str) -> Tensor:
        return apply_mask(
            name, change.clone(), theta_0, inputs(name, score, key=RandomKey(seed, parameter))
        )

    torch.manual_seed(5)
    np.random.seed(5)
    first = masked(1, "a")
    apply_mask(
        name, change[:3].clone(), theta_0[:3], inputs(name, score[:3], key=RandomKey(2, "b"))
    )
    assert torch.equal(masked(1, "a"), first)
    assert not torch.equal(masked(2, "a"), first)
    assert not torch.equal(masked(1, "b"), first)


def test_what_magnitude_and_saliency_keep() -> None:
    change = torch.tensor([[1.0, -2.0, 2.0], [2.0, 0.5, -2.0]])  # ties go by index
    assert load_plugin("masks", "magnitude")(change, density=0.5).tolist() == [
        [0, -2, 2],
        [2, 0, 0],
    ]
    # products 2, 3, 2, 1.5: neither factor alone, nor a signed product, nor a later tie keeps the
    # first two
    change, score = torch.tensor([1.0, -3.0, 2.0, 0.1]), torch.tensor([-2.0, 1.0, 1.0, -15.0])
    assert load_plugin("masks", "saliency")(change, score=score, density=0.5).tolist() == [
        1,
        -3,
        0,
        0,
    ]


@pytest.mark.parametrize("shape", [(4, 8), (3, 10), (7,), (2, 3, 5)])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (1, 4), (3, 3)])
def test_n_of_every_m_are_kept(shape: tuple[int, ...], n: int, m: int) -> None:
    change = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(1)).float()
    expected = []
    for row in change.reshape(-1, shape[-1]).tolist():
        for start in range(0, len(row), m):
            run = row[start : start + m]
            best = sorted(range(len(run)), key=lambda i: (-abs(run[i]), i))[:n]
            expected += [value if i in best else 0.0 for i, value in enumerate(run)]
    assert load_plugin("masks", "n-m")(change, n=n, m=m).flatten().tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_right_multiply_entry_by_entry(dtype: torch.dtype) -> None:
    change, score = example((3, 4))[0].to(dtype), example((4, 4))[1]
    masked = load_plugin("masks", "right-multiply")(change, score=score)
    a, b = change.double().tolist(), score.double().tolist()
    expected = [[sum(a[i][k] * b[k][j] for k in range(4)) for j in range(4)] for i in range(3)]
    assert masked.dtype == dtype
    assert np.allclose(masked.numpy(), expected, atol=1e-6)


def test_spectral_scales_the_directions() -> None:
    change = example((6, 9))[0]
    u, s, vh = np.linalg.svd(change.double().numpy(), full_matrices=False)
    expected = (u * (s * [0.7, 0.7, 0.2, 0.2, 0.2, 0.2])) @ vh
    masked = load_plugin("masks", "spectral")(change, rank=2, high=0.7, low=0.2)
    assert np.allclose(masked.numpy(), expected, atol=1e-6)


def test_options_that_there_are_not_or_out_of_range_are_refused() -> None:
    for density in (0.0, -0.1, 1.1, float("nan"), "half", True):
        with pytest.raises(RecipeError, match="mask magnitude: option 'density' cannot be"):
            complete_mask_options("magnitude", density, {})  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"mask n-m: no option 'nn' \(options: n, m\)"):
        complete_mask_options("n-m", 1.0, {"nn": 3})
