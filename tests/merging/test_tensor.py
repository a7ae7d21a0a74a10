"""The merge of one tensor against numpy scalars, conversions against torch, and selections against
sorting.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipmerge.merging import merge_tensor
from clipmerge.merging.floats import LIMITS, fits, narrow, widen
from clipmerge.merging.selection import keep_largest, keep_top_k
from clipmerge.merging.spectral import singular_values
from tests.support.command import python
from tests.support.tiny_clip import Folders

Array = np.ndarray[Any, Any]
WIDE = [np.float32, np.float64]


def arrays(seed: int, count: int = 2, shape: tuple[int, ...] = (5, 7), dtype: Any = "f4") -> Any:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape).astype(dtype) for _ in range(count)]


def same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


# --- the formula ---


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("alpha", [0.5, 0.3, -0.4, 1.7, 1e-8])
@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.5], [1 / 3, 1 / 3, 1 / 3], [2.0, -1.0]])
def test_the_merge_of_a_tensor_is_the_formula_entry_by_entry(
    dtype: Any, alpha: float, weights: list[float]
) -> None:
    theta_0, *finetuned = arrays(1, 1 + len(weights), dtype=dtype)
    merged = merge_tensor(theta_0, finetuned, alpha=alpha, weights=weights)
    for place in np.ndindex(5, 7):
        total = dtype(0)
        for theta_i, weight in zip(finetuned, weights, strict=True):
            total = dtype(total + dtype(dtype(theta_i[place] - theta_0[place]) * dtype(weight)))
        assert merged[place] == dtype(theta_0[place] + dtype(total * dtype(alpha)))


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("which", [0, 1])
def test_both_ends_are_the_inputs_bit_for_bit(dtype: Any, which: int) -> None:
    theta_0, theta_1, theta_2 = ends = arrays(3, 3, dtype=dtype)
    theta_0.flat[:3] = 3e4, -0.0, 6e4  # differences that cannot be represented, negative zeros
    theta_1.flat[:3] = 1e-5, 0.0, 6e4
    for alpha in (which, float(which), np.full((5, 7), which, np.float32)):
        assert same_bits(merge_tensor(theta_0, [theta_1], alpha=alpha), ends[which])
    weighted = merge_tensor(theta_0, [theta_2, theta_1], alpha=1, weights=[0.0, float(which)])
    assert same_bits(weighted, ends[which])


# --- conversions ---


@pytest.mark.parametrize(("name", "dtype"), [("BF16", "bfloat16"), ("F16", "float16")])
def test_every_number_of_16_bits_is_widened_and_rounded_to_as_torch_does(
    name: str, dtype: str
) -> None:
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    values = bits.view(getattr(torch, dtype))
    stored = bits.numpy().view(np.float16 if name == "F16" else np.uint16)
    assert np.array_equal(widen(stored, name), values.float().numpy(), equal_nan=True)
    is_finite = values.isfinite()
    wide = widen(stored[is_finite.numpy()], name)
    assert same_bits(wide, values[is_finite].float().numpy())
    # the numbers themselves, the middles between them, and what is next to the middles
    wide.sort()
    middles = (wide[1:] / 2 + wide[:-1] / 2).astype(np.float32)
    near = [np.nextafter(middles, np.float32(end)) for end in (-np.inf, np.inf)]
    tried = np.concatenate([wide, middles, *near, *arrays(2, 1, (50_000,))])
    expected = torch.from_numpy(tried).to(values.dtype).view(torch.int16).numpy()
    assert narrow(tried, name).tobytes() == expected.tobytes()


@pytest.mark.parametrize(("name", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16)])
def test_values_that_round_to_infinity_do_not_fit(name: str, dtype: torch.dtype) -> None:
    limit = np.float32(LIMITS[name])
    for value in (np.nextafter(limit, np.float32(0)), limit, -limit):
        rounded = torch.tensor(value).to(dtype)
        assert fits(np.array([1.0, value], np.float32), name) is bool(rounded.isfinite())
    for value in (np.nan, np.inf, -np.inf):
        assert not fits(np.array([0.0, value], np.float32), "F32")


# --- selections ---


def slow_first(scores: list[float], kept: int) -> list[bool]:
    """Rank by (magnitude, lower index first), keep the first."""
    ranked = sorted(range(len(scores)), key=lambda i: (-abs(scores[i]), i))
    return [i in set(ranked[:kept]) for i in range(len(scores))]


@given(
    scores=st.lists(
        st.sampled_from([0.0, -0.0, 0.5, -1.0, 1.0, 1.5, 1e-45]) | st.floats(-2, 2, width=32),
        min_size=1,
        max_size=60,
    ),
    density=st.floats(0.01, 1),
)
def test_the_largest_are_kept_and_ties_go_by_index(scores: list[float], density: float) -> None:
    values = np.array(scores, np.float32)
    expected = slow_first(values.tolist(), max(1, round(density * len(scores))))
    assert keep_largest(values, density).tolist() == expected
    for count in range(len(scores) + 1):
        assert keep_top_k(values, count).tolist() == slow_first(values.tolist(), count)


# --- singular directions ---


def test_small_singular_values_are_as_exact_as_large_ones() -> None:
    generator = np.random.default_rng(3)
    left, right = (np.linalg.qr(generator.standard_normal((size, 12)))[0] for size in (12, 30))
    expected = np.geomspace(5, 5e-7, 12)
    assert np.allclose(singular_values(left * expected @ right.T), expected, rtol=1e-8, atol=1e-14)


# Runs commands, and prints the heavy modules that were imported.
LIGHT = """
import json, sys
from clipmerge.cli.app import main
for command in json.loads(sys.argv.pop()):
    sys.argv[1:] = command
    assert main() == 0
unused = {"torch", "transformers", "accelerate", "datasets", "matplotlib", "sklearn"}
sys.stderr.write(str(unused & set(sys.modules)))
"""


def test_data_free_commands_import_nothing_heavy(pair: Folders, tmp_path: Path) -> None:
    plan, outputs = str(tmp_path / "plan.json"), [tmp_path / "merged", tmp_path / "applied"]
    half = ["--dtype", "bfloat16", "--set", "overrides=[{layers: '*', density: 0.5}]"]
    given = [*map(str, pair), "--recipe", "wise-ft", *half, "--output"]
    apply = ["apply", plan, "--output", str(outputs[1])]
    commands = [["merge", *given, str(outputs[0])], ["plan", *given, plan], apply]
    ended = python("-c", LIGHT, json.dumps(commands))
    assert ended.stderr.endswith("set()"), ended.stderr
    files = [(folder / "model.safetensors").read_bytes() for folder in outputs]
    assert files[0] == files[1]
