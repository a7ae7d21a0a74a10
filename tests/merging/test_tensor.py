"""The merge arithmetic against entry-by-entry loops in numpy scalars, and the masks' selections
against sorting."""

import hashlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipmerge.merging import formula
from clipmerge.merging.formula import weighted_change
from clipmerge.merging.selection import RandomKey, keep_largest, keep_random, keep_top_k
from clipmerge.merging.spectral import singular_values, spectral_split
from clipmerge.merging.stream import plan_tensors
from clipmerge.merging.tensor import merge_tensor
from clipmerge.planning.plan import LayerPlan
from tests.merging.test_dtypes_and_shards import DTYPES, cast
from tests.support.command import python
from tests.support.tasks import inputs_of, plan_with
from tests.support.tiny_clip import Folders
from tests.test_parallel import threads

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
EASY = settings(max_examples=60, deadline=None)


def tensors(
    seed: int, count: int = 2, shape: tuple[int, ...] = (5, 7), dtype: torch.dtype = torch.float32
) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)
    ]


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(
        a.reshape(-1).contiguous().view(torch.uint8), b.reshape(-1).contiguous().view(torch.uint8)
    )


def slow_merge(
    theta_0: Tensor, finetuned: list[Tensor], alpha: float, weights: list[float]
) -> list[float]:
    """Entry by entry in the arithmetic's own scalar type, rounding at each operation."""
    wide = np.float64 if theta_0.dtype == torch.float64 else np.float32
    result = []
    for i, base in enumerate(theta_0.flatten().double().tolist()):
        total = wide(0)
        for each, weight in zip(finetuned, weights, strict=True):
            value = each.flatten().double().tolist()[i]
            total = wide(total + wide(wide(wide(value) - wide(base)) * wide(weight)))
        result.append(float(wide(wide(base) + wide(total * wide(alpha)))))
    return result


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("alpha", [0.5, 0.3, -0.4, 1.7, 1e-8])
@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.5], [1 / 3, 1 / 3, 1 / 3], [2.0, -1.0]])
def test_it_is_the_formula_entry_by_entry(
    dtype: torch.dtype, alpha: float, weights: list[float]
) -> None:
    theta_0, *finetuned = tensors(1, 1 + len(weights), dtype=dtype)
    merged = merge_tensor(theta_0, finetuned, alpha=alpha, weights=weights)
    expected = torch.tensor(
        slow_merge(theta_0, finetuned, alpha, weights), dtype=torch.float64
    ).view(5, 7)
    assert same_bits(merged, expected.to(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("alpha", "which"), [(0.0, 0), (1.0, 1), (0, 0), (1, 1)])
def test_both_ends_are_the_inputs_bit_for_bit(dtype: torch.dtype, alpha: float, which: int) -> None:
    pair = tensors(3, dtype=dtype)
    for tensor in pair:  # values whose difference cannot be represented, and a negative zero
        tensor.view(-1)[:3] = torch.tensor([1e-5, -0.0, 6e4], dtype=dtype)
    pair[0].view(-1)[0] = 3e4
    pair[1].view(-1)[1] = 0.0
    assert same_bits(merge_tensor(*pair, alpha=alpha), pair[which])
    assert same_bits(
        merge_tensor(*pair, alpha=torch.full((5, 7), alpha, dtype=torch.float32)), pair[which]
    )


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_only_checkpoint_with_a_weight_is_copied_where_that_is_one(which: int) -> None:
    theta_0, *finetuned = tensors(8, 4)
    theta_0.view(-1)[0], finetuned[which].view(-1)[0] = (
        3e4,
        1e-5,
    )  # their difference cannot be represented
    weights = [float(i == which) for i in range(3)]
    assert same_bits(merge_tensor(theta_0, finetuned, alpha=1, weights=weights), finetuned[which])
    assert same_bits(merge_tensor(theta_0, finetuned, alpha=1, weights=[0.0] * 3), theta_0)


@pytest.mark.parametrize("shape", [(5, 7), (5, 1), (1, 7)])
@pytest.mark.parametrize("weights", [(1.0,), (0.25, 0.75)])
def test_an_alpha_a_row_or_an_entry_broadcasts(
    shape: tuple[int, ...], weights: tuple[float, ...]
) -> None:
    theta_0, *finetuned = tensors(4, count=1 + len(weights))
    theta_0[0] = -0.0
    alpha = torch.linspace(0, 1, shape[0] * shape[1]).view(shape)
    merged, full = (
        merge_tensor(theta_0, finetuned, alpha=alpha, weights=weights),
        alpha.expand(5, 7),
    )
    for at in range(35):
        base, *others = (each.flatten()[at].view(1) for each in (theta_0, *finetuned))
        one = merge_tensor(base, others, alpha=float(full.flatten()[at]), weights=weights)
        assert same_bits(merged.flatten()[at].view(1), one)


def test_the_inputs_are_left_alone() -> None:
    pair = tensors(5)
    before = [tensor.clone() for tensor in pair]
    for options in (
        {},
        {"mask": "magnitude", "density": 0.5},
        {"mask": "random", "key": RandomKey(0, "x")},
    ):
        merge_tensor(*pair, alpha=0.5, **options)
    assert all(same_bits(a, b) for a, b in zip(pair, before, strict=True))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3)])
def test_scalars_and_empty_tensors_are_never_masked(shape: tuple[int, ...]) -> None:
    theta_0, theta_1 = torch.full(shape, 2.0), torch.full(shape, 4.0)
    key = RandomKey(0, "x")
    merged = merge_tensor(theta_0, theta_1, alpha=0.5, mask="random", density=1e-9, key=key)
    assert same_bits(merged, torch.full(shape, 3.0))


def test_wrong_shapes_and_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes differ: \(2,\) and \(3,\)"):
        merge_tensor(torch.zeros(2), torch.zeros(3), alpha=0.5)
    with pytest.raises(ValueError, match="1 weights for 2 fine-tuned parameters"):
        merge_tensor(torch.zeros(2), [torch.zeros(2), torch.zeros(2)], alpha=0.5)


@EASY
@given(seed=st.integers(0, 1000), alpha=st.floats(-2, 2), cut=st.integers(1, 34))
def test_chunks_give_the_same_bytes(seed: int, alpha: float, cut: int) -> None:
    theta_0, theta_1 = tensors(seed)
    whole = merge_tensor(theta_0, theta_1, alpha=alpha).flatten()
    a, b = theta_0.flatten(), theta_1.flatten()
    parts = [
        merge_tensor(a[:cut], b[:cut], alpha=alpha),
        merge_tensor(a[cut:], b[cut:], alpha=alpha),
    ]
    assert same_bits(torch.cat(parts), whole)


def test_threads_give_the_same_bytes() -> None:
    theta_0, theta_1 = tensors(6, shape=(300, 400))
    results = []
    for count in (1, 2):
        with threads(count):
            plain = merge_tensor(theta_0, theta_1, alpha=0.3)
            masked = merge_tensor(theta_0, theta_1, alpha=0.3, mask="magnitude", density=0.4)
            results.append((plain, masked, *spectral_split(theta_1, 7), singular_values(theta_1)))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def slow_first(scores: list[float], kept: int) -> list[bool]:
    """Rank by (magnitude, lower index first), keep the first."""
    ranked = sorted(range(len(scores)), key=lambda i: (-abs(scores[i]), i))
    return [i in set(ranked[:kept]) for i in range(len(scores))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@EASY
@given(
    scores=st.lists(
        st.sampled_from([0.0, -0.0, 0.5, -1.0, 1.0, 1.5, 1e-45]) | st.floats(-2, 2, width=32),
        min_size=1,
        max_size=60,
    ),
    density=st.floats(0.01, 1),
)
def test_the_largest_are_kept_and_ties_go_by_index(
    dtype: torch.dtype, scores: list[float], density: float
) -> None:
    held = torch.tensor(scores, dtype=dtype)
    kept = keep_largest(held, density)
    some = [keep_top_k(held, count).tolist() for count in range(len(scores) + 1)]
    assert kept.tolist() == slow_first(held.tolist(), max(1, round(density * len(scores))))
    assert some == [slow_first(held.tolist(), count) for count in range(len(scores) + 1)]


def test_of_many_entries_the_largest_are_those_of_sorting() -> None:
    scores = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    misleading = scores + 100 * (torch.arange(len(scores)) % 18 == 0)  # a sample takes every 18th
    for held in (scores, (8 * scores).round(), misleading):
        ranked = held.abs().argsort(descending=True, stable=True)
        for count in (3, 3_000, 150_000, 299_990):
            assert torch.equal(
                keep_top_k(held, count).nonzero().flatten(), ranked[:count].sort().values
            )


def slow_random(count: int, density: float, key: RandomKey) -> list[bool]:
    """One draw at a time, as a fraction of 2^64 in Python's integers."""
    digest = hashlib.sha256(f"{key.seed}:{key.name}".encode()).digest()[:16]
    generator = np.random.Philox(key=int.from_bytes(digest, "little"))
    return [int(generator.random_raw()) // 2**11 < round(density * 2**53) for _ in range(count)]


@pytest.mark.parametrize("density", [1e-9, 0.1, 0.5, 1.0])
def test_random_entries_come_from_seed_and_name_alone(density: float) -> None:
    key = RandomKey(3, "vision_model.a")
    kept = keep_random(torch.Size([30, 40]), density, key)
    assert kept.flatten().tolist() == slow_random(1200, density, key)
    assert torch.equal(keep_random(torch.Size([1200]), density, key), kept.flatten())
    torch.manual_seed(99)
    assert torch.equal(keep_random(torch.Size([30, 40]), density, key, draws=7), kept)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7), (4, 3, 2, 2), (5, 1)])
@pytest.mark.parametrize("rank", [1, 3, 100])
def test_a_spectral_split_is_the_truncated_svd(shape: tuple[int, ...], rank: int) -> None:
    matrix = tensors(7, 1, shape)[0]
    principal, rest = spectral_split(matrix, rank)
    u, s, vh = np.linalg.svd(matrix.reshape(shape[0], -1).double().numpy(), full_matrices=False)
    expected = (u[:, :rank] * s[:rank]) @ vh[:rank]
    assert principal.shape == rest.shape == matrix.shape
    assert np.allclose(principal.reshape(shape[0], -1).numpy(), expected, atol=1e-6)
    assert torch.allclose(principal + rest, matrix, atol=1e-6)
    assert np.allclose(singular_values(matrix).numpy(), s, atol=1e-12)


def test_small_singular_values_are_as_exact_as_large_ones() -> None:
    generator = np.random.default_rng(3)
    left, right = (np.linalg.qr(generator.standard_normal((size, 12)))[0] for size in (12, 30))
    expected = np.geomspace(5, 5e-7, 12)
    found = singular_values(torch.from_numpy(left * expected @ right.T))
    assert np.allclose(found.numpy(), expected, rtol=1e-8, atol=1e-14)


# Runs commands, and tells which of the modules that they have no use for were imported all the
# same.
LIGHT = """
import contextlib, json, sys
from clipmerge.cli.app import main
for command in json.loads(sys.argv.pop()):
    sys.argv[1:] = command
    with contextlib.suppress(SystemExit):
        main()
sys.exit(str({"torch", "transformers", "accelerate", "datasets", "matplotlib", "sklearn"} & set(sys.modules)))
"""


def test_data_free_commands_import_nothing_heavy(pair: Folders, tmp_path: Path) -> None:
    plan, outputs = str(tmp_path / "plan.json"), [tmp_path / "merged", tmp_path / "applied"]
    commands = [
        ["merge", *map(str, pair), "--recipe", "lines", "--output", str(outputs[0])],
        ["plan", *map(str, pair), "--recipe", "lines", "--output", plan],
        ["apply", plan, "--output", str(outputs[1])],
    ]
    ended = python("-c", LIGHT, json.dumps(commands))
    assert ended.stderr.splitlines()[-1] == "set()", ended.stderr
    files = [(folder / "model.safetensors").read_bytes() for folder in outputs]
    assert files[0] == files[1]


def rounded(value: Fraction) -> Fraction:
    """To the nearest float32, by way of the exact value: numpy rounds a Python integer or float
    once."""
    return Fraction(float(np.float32(float(value))))


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.5, -0.25])
@pytest.mark.parametrize("weights", [(1.0,), (0.25, 0.5)])
def test_every_step_is_rounded_as_exact_arithmetic_says(
    alpha: float, weights: tuple[float, ...]
) -> None:
    rng = np.random.default_rng(0)
    theta_0, *finetuned = (
        rng.standard_normal(200).astype(np.float32) for _ in range(1 + len(weights))
    )
    found = weighted_change(np, theta_0, finetuned, alpha=alpha, weights=weights)
    for place in range(200):
        base, *others = (Fraction(float(values[place])) for values in (theta_0, *finetuned))
        # the products of two float32 are exact in float64, and so are these small sums' operands
        change = rounded(rounded(others[0] - base) * rounded(Fraction(weights[0])))
        for other, weight in zip(others[1:], weights[1:], strict=True):
            change = rounded(change + rounded(rounded(other - base) * rounded(Fraction(weight))))
        assert Fraction(float(found[place])) == rounded(change * rounded(Fraction(alpha)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 1.7])
def test_bytes_are_those_of_the_merge_by_torch(
    copies: Folders, monkeypatch: pytest.MonkeyPatch, dtype: str, alpha: float
) -> None:
    monkeypatch.setattr(formula, "CHUNK", 37)
    zeroshot, finetuned = (cast(folder, dtype) for folder in copies)
    opened = inputs_of(copies)
    plan = plan_with(
        {layer: LayerPlan(alpha=alpha) for layer in opened.layers if layer != "text.0.mlp"}
    )
    for tensor in plan_tensors(opened, plan):
        left_alone = tensor.name.startswith("text_model.encoder.layers.0.mlp") or (
            tensor.name.startswith("text_model.encoder.layers.0.layer_norm2")
        )
        expected = merge_tensor(
            zeroshot[tensor.key], finetuned[tensor.key], alpha=0.0 if left_alone else alpha
        )
        found = tensor.tensor(tensor.chunks(np.empty))
        assert found.dtype == DTYPES[dtype]
        assert found.numpy().tobytes() == expected.numpy().tobytes(), tensor.key
