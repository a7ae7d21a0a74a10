"""Rules for several task vectors: their common properties, and each against peft and entry-by-entry
loops.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.utils import merge_utils
from safetensors.numpy import load_file

from clipmerge.merging import bind_combination, bind_mask
from clipmerge.merging.selection import RandomKey
from clipmerge.plugins import plugin_names
from tests.support.command import done
from tests.support.tasks import decide, merge_masked, merged, task_of

Array = np.ndarray[Any, Any]
RULES = plugin_names("combinations")
KEY = RandomKey(3, "vision_model.a")
SHAPES = [(), (1,), (1, 1), (0,), (0, 3), (6, 8), (37,), (4, 3, 2, 2), (5, 1)]


def vectors(shape: tuple[int, ...], count: int = 3, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def combined(
    rule: str, stack: Array, weights: tuple[float, ...] | None = None, **options: Any
) -> Array:
    sparsify = stack[0].size > 1
    factors = weights or (1.0,) * len(stack)
    combine = bind_combination(rule, options, factors, KEY, sparsify=sparsify)
    return np.asarray(combine(stack.copy()))  # it may write there


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 2.0, 1.5)])
@pytest.mark.parametrize("density", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("shape", [(40, 50), (10, 10, 5, 4)], ids=str)
def test_peft_says_the_same(
    shape: tuple[int, ...], density: float, weights: tuple[float, ...], monkeypatch: Any
) -> None:
    stack = vectors(shape)
    listed, factors = list(torch.from_numpy(stack)), torch.tensor(weights)
    ties = merge_utils.ties(listed, factors, density).numpy()
    assert np.allclose(combined("ties", stack, weights, density=density), ties, atol=1e-6)
    # peft draws from torch's generator; the same draws here
    drawn = torch.Generator().manual_seed(5)
    monkeypatch.setattr(
        "clipmerge.methods.dare.keep_random",
        lambda size, chance, key: (
            torch.bernoulli(torch.full(size, chance), generator=drawn).bool().numpy()
        ),
    )
    torch.manual_seed(5)
    dare = merge_utils.dare_linear(listed, factors, density).numpy()
    assert np.allclose(combined("dare", stack, weights, density=density), dare, atol=1e-6)


def slow_ties(rows: list[list[float]], density: float) -> list[float]:
    kept = []
    for row in rows:
        count = max(1, round(density * len(row)))
        largest = sorted(range(len(row)), key=lambda i: (-abs(row[i]), i))[:count]
        kept.append([value if i in largest else 0.0 for i, value in enumerate(row)])
    result = []
    for entries in zip(*kept, strict=True):
        positive = sum(entries) >= 0
        agree = [value for value in entries if value and (value > 0) == positive]
        result.append(sum(agree) / len(agree) if agree else 0.0)
    return result


@pytest.mark.parametrize("density", [1e-6, 0.3, 1.0])
def test_ties_entry_by_entry(density: float) -> None:
    # small integers: entries tie in size, cancel to a sum of zero, and agree
    stack = np.random.default_rng(1).integers(-3, 4, (3, 8, 9)).astype(np.float32)
    expected = slow_ties(stack.reshape(3, -1).tolist(), density)
    assert combined("ties", stack, density=density).ravel().tolist() == pytest.approx(expected)


def draws(count: int, which: int) -> list[int]:
    """The top 53 bits of Philox' words, one at a time."""
    digest = hashlib.sha256(f"{KEY.seed}#{which}:{KEY.name}".encode()).digest()[:16]
    generator = np.random.Philox(key=int.from_bytes(digest, "little"))
    return [int(generator.random_raw()) // 2**11 for _ in range(count)]


@pytest.mark.parametrize("shape", [(7, 9), (12,), (3, 2, 2, 2), (5, 1)], ids=str)
def test_della_entry_by_entry(shape: tuple[int, ...]) -> None:
    stack = vectors(shape, 2)
    rows = stack.reshape(2, shape[0] if len(shape) > 1 else 1, -1)
    thinned = []
    for which, matrix in enumerate(rows.tolist()):
        words = iter(draws(stack[0].size, which))
        kept = []
        for row in matrix:
            ranked = sorted(range(len(row)), key=lambda i: (abs(row[i]), i))
            for i, value in enumerate(row):
                share = ranked.index(i) / (len(row) - 1) if len(row) > 1 else 0.5
                chance = 0.6 + 0.4 * (share - 0.5)
                kept.append(value / chance if next(words) < chance * 2**53 else 0.0)
        thinned.append(kept)
    result = combined("della", stack, density=0.6, window=0.4)
    assert result.ravel().tolist() == pytest.approx(slow_ties(thinned, 1.0), abs=1e-5)


@pytest.mark.parametrize(
    ("density", "outliers"), [(0.5, 0.25), (0.3, 0.0), (1.0, 0.3), (1e-6, 0.5), (0.5, 1.0)]
)
def test_breadcrumbs_entry_by_entry(density: float, outliers: float) -> None:
    stack = np.random.default_rng(2).integers(-9, 10, (2, 4, 10)).astype(np.float32)
    expected = [0.0] * 40
    for row in stack.reshape(2, -1).tolist():
        ranked = sorted(range(40), key=lambda i: (-abs(row[i]), i))
        first = min(round(outliers * 40), 39)
        for i in ranked[first : first + max(1, round(density * 40))]:
            expected[i] += row[i]
    result = combined("breadcrumbs", stack, density=density, outliers=outliers)
    assert result.ravel().tolist() == expected


def test_a_mask_comes_after_the_combination() -> None:
    theta_0 = np.zeros((2, 4), np.float32)
    finetuned = [np.array([row] * 2, np.float32) for row in ([4.0, 1, 0, 0], [2.0, -3, 0, 1])]
    rule = bind_combination("ties", {"density": 1.0}, (1.0, 1.0), KEY)
    given: Any = {"alpha": 2.0, "weights": (1.0, 1.0), "combine": rule}
    assert merge_masked(theta_0, finetuned, **given).tolist() == [[6, -6, 0, 2]] * 2
    masked = merge_masked(theta_0, finetuned, mask=bind_mask("magnitude", 0.25, {}), **given)
    assert masked.tolist() == [[6, -6, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("method", RULES)
def test_every_parameter_goes_through_the_rule_of_its_name(family: list[Path], method: str) -> None:
    task = task_of(family)
    decision = decide(task, method, alpha=0.7)
    assert decision.layers.keys() == task.layers.keys()
    assert decision.combine is not None
    # a rule sees whole parameters whatever the chunks
    result = merged(task, decision, seed=KEY.seed, run=100)
    base, *others = (load_file(folder / "model.safetensors") for folder in family)
    for name, value in base.items():
        stack = np.stack([other[name] - value for other in others])
        key = RandomKey(KEY.seed, name)
        change = bind_combination(method, {}, (1.0,) * 3, key, sparsify=value.size > 1)(stack)
        assert np.allclose(result[name].numpy(), value + 0.7 * change, atol=1e-6), name
    assert result["logit_scale"].shape == ()


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
