"""Rules for several task vectors: their common properties, and each against peft and entry-by-entry
loops.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.utils import merge_utils
from safetensors.numpy import load_file

from clipmerge.errors import UsageError
from clipmerge.merging import bind_combination, bind_mask, merge_tensor
from clipmerge.merging.selection import RandomKey
from clipmerge.planning.plan import Combination, LayerPlan, read_plan
from clipmerge.plugins import plugin_names
from tests.support.command import done
from tests.support.tasks import decide, merge_masked, merged, plan_with, task_of

Array = np.ndarray[Any, Any]
RULES = plugin_names("combinations")
KEY = RandomKey(3, "vision_model.a")
SHAPES = [(), (1,), (1, 1), (0,), (0, 3), (6, 8), (37,), (4, 3, 2, 2), (5, 1)]


def vectors(shape: tuple[int, ...], count: int = 3, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def combined(
    rule: str,
    stack: Array,
    weights: tuple[float, ...] | None = None,
    **options: Any,
) -> Array:
    sparsify = stack[0].size > 1
    factors = weights or (1.0,) * len(stack)
    combine = bind_combination(rule, options, factors, KEY, sparsify=sparsify)
    return np.asarray(combine(stack.copy()))  # it may write there


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_shape_and_dtype_survive_and_runs_are_equal(rule: str, shape: tuple[int, ...]) -> None:
    for count, dtype in ((1, np.float32), (2, np.float64), (3, np.float32)):
        stack = vectors(shape, count).astype(dtype)
        first, second = (combined(rule, stack) for _ in range(2))
        assert first.shape == shape
        assert first.dtype == dtype
        assert np.array_equal(first, second)
        assert np.isfinite(first).all()


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
    pruned = merge_utils.magnitude_prune(listed, factors, density).numpy()
    found = combined("breadcrumbs", stack, weights, density=density, outliers=0.0)
    assert np.allclose(found, pruned, atol=1e-6)
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
    theta_0 = vectors(shape, 1, seed=9)[0]
    moved = merge_tensor(theta_0, [theta_0 + each for each in stack], alpha=1.0, weights=weights)
    arithmetic = merge_utils.task_arithmetic(listed, factors).numpy()
    assert np.allclose(moved, theta_0 + arithmetic, atol=2e-6)  # tau is exact to 1e-7 a term


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


def test_dare_draws_for_each_checkpoint_by_itself() -> None:
    stack = np.ones((2, 30, 10), np.float32)
    result = combined("dare", stack, (1.0, 10.0), density=0.25).ravel().tolist()
    kept = [[draw < 2**51 for draw in draws(300, which)] for which in range(2)]
    assert result == [4.0 * a + 40.0 * b for a, b in zip(*kept, strict=True)]
    assert kept[0] != kept[1]


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
    "options", [{"density": 0.05, "window": 0.1}, {"density": 0.9, "window": 0.4}]
)
def test_a_window_that_gives_no_probabilities_is_refused(
    options: dict[str, float], family: list[Path]
) -> None:
    told = r"della: density .* give probabilities from .*; choose a smaller window"
    with pytest.raises(UsageError, match=told):
        combined("della", vectors((3, 4)), **options)
    with pytest.raises(UsageError, match=told):
        decide(task_of(family), "della", **options)


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


def test_an_entry_that_nobody_moves_is_zero_shot_bit_for_bit() -> None:
    theta_0 = np.full((4, 8), -0.0, np.float32)
    finetuned = [theta_0 + each for each in vectors((4, 8), 2)]
    rule = bind_combination("ties", {"density": 0.25}, (1.0, 1.0), KEY)
    moved = merge_masked(theta_0, finetuned, alpha=0.7, weights=(1.0, 1.0), combine=rule)
    gone = moved == 0
    assert 0 < gone.sum() < 32
    assert np.signbit(moved[gone]).all()


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


def test_with_one_checkpoint_it_is_another_method_or_thins_it_out(family: list[Path]) -> None:
    task = task_of(family[:2])
    base = load_file(family[0] / "model.safetensors")
    for method in ("ties", "task-arithmetic", "model-stock", "greedy-soup"):
        told = f"method {method}: needs at least two fine-tuned checkpoints; with one"
        with pytest.raises(UsageError, match=told):
            decide(task, method)
    for method, kept in (("dare", 0.5), ("della", 0.5), ("breadcrumbs", 0.15)):
        result = merged(task, decide(task, method, alpha=1.0))
        for name, value in base.items():
            if value.size > 200:
                moved = (result[name].numpy() != value).mean()
                assert moved == pytest.approx(kept, abs=0.12)


@pytest.mark.parametrize(
    ("combine", "message"),
    [
        ({"rule": "tise"}, r"combine: no combination 'tise' .* Did you mean 'ties'"),
        (
            {"rule": "ties", "options": {"densty": 1}},
            "combine: combination ties: no option 'densty'.*'density'",
        ),
    ],
)
def test_a_plan_of_an_impossible_combination_is_refused(
    tmp_path: Path, combine: dict[str, Any], message: str
) -> None:
    rule = Combination(rule="ties", options={"density": 0.5})
    plan = plan_with({"a": LayerPlan(alpha=1.0)}, combine=rule)
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json())
    assert read_plan(file) == plan
    read_plan(file).check({"a": ()})
    file.write_text(json.dumps({**json.loads(plan.to_json()), "combine": combine}))
    with pytest.raises(UsageError, match=message):
        read_plan(file).check({"a": ()})


@pytest.mark.parametrize("recipe", ["task-arithmetic", "della"])  # without a rule, and one by draws
def test_the_command_writes_the_same_bytes_each_time_and_by_way_of_a_plan(
    family: list[Path], tmp_path: Path, recipe: str
) -> None:
    names = ("first", "again", "other", "by-plan")
    first, again, other, by_plan = (tmp_path / name for name in names)
    done("merge", *family, "--recipe", recipe, "--output", first)
    done("merge", *family, "--recipe", recipe, "--output", again)
    done("merge", *family, "--recipe", recipe, "--output", other, "--seed", 1)
    done("plan", *family, "--recipe", recipe, "--output", tmp_path / "plan.json")
    done("apply", tmp_path / "plan.json", "--output", by_plan)
    bytes_of = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in names}
    assert bytes_of["first"] == bytes_of["again"] == bytes_of["by-plan"]
    assert (bytes_of["first"] != bytes_of["other"]) is (recipe == "della")
