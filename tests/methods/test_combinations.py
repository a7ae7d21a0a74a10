"""Rules for several task vectors: their common properties, and each against peft and entry-by-entry
loops."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.utils import merge_utils
from safetensors.torch import load_file
from torch import Tensor

from clipmerge.errors import PlanError, RecipeError
from clipmerge.merging.selection import RandomKey
from clipmerge.merging.tensor import apply_mask, bind_combination, merge_tensor
from clipmerge.planning.plan import Combination, LayerPlan, read_plan
from clipmerge.plugins import plugin_names
from tests.support.command import done
from tests.support.tasks import decide, merged, plan_with, task_of

RULES = plugin_names("combinations")
KEY = RandomKey(3, "vision_model.a")
SHAPES = [(), (1,), (1, 1), (0,), (0, 3), (6, 8), (37,), (4, 3, 2, 2), (5, 1)]


def vectors(shape: tuple[int, ...], count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def combined(
    rule: str,
    stack: Tensor,
    weights: tuple[float, ...] | None = None,
    *,
    sparsify: bool = True,
    **options: Any,
) -> Tensor:
    combine = bind_combination(
        rule, options, weights or (1.0,) * len(stack), KEY, sparsify=sparsify
    )
    return combine(stack.clone())  # it may write there


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_shape_and_dtype_survive_and_runs_are_equal(rule: str, shape: tuple[int, ...]) -> None:
    for count, dtype in ((1, torch.float32), (2, torch.float64), (3, torch.float32)):
        stack = vectors(shape, count).to(dtype)
        results = [combined(rule, stack) for _ in range(2)]
        assert results[0].shape == shape
        assert results[0].dtype == dtype
        assert torch.equal(*results)
        assert bool(results[0].isfinite().all())


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 2.0, 1.5)])
@pytest.mark.parametrize("density", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("shape", [(40, 50), (2000,), (10, 10, 5, 4)], ids=str)
def test_peft_says_the_same(
    shape: tuple[int, ...],
    density: float,
    weights: tuple[float, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = vectors(shape)
    listed, factors = list(stack), torch.tensor(weights)
    expected = {
        "ties": merge_utils.ties(listed, factors, density),
        "breadcrumbs": merge_utils.magnitude_prune(listed, factors, density),
    }
    assert torch.allclose(
        combined("ties", stack, weights, density=density), expected["ties"], atol=1e-6
    )
    pruned = combined("breadcrumbs", stack, weights, density=density, outliers=0.0)
    assert torch.allclose(pruned, expected["breadcrumbs"], atol=1e-6)
    alone = apply_mask("magnitude", stack[0] * weights[0], stack[0], {"density": density})
    one = merge_utils.magnitude_prune(listed[:1], factors[:1], density)
    assert torch.allclose(alone, one, atol=1e-6)

    drawn = torch.Generator().manual_seed(
        5
    )  # peft draws from torch's generator; the same draws here
    monkeypatch.setattr(
        "clipmerge.methods.dare.keep_random",
        lambda size, chance, key: torch.bernoulli(torch.full(size, chance), generator=drawn).bool(),
    )
    torch.manual_seed(5)
    dare = merge_utils.dare_linear(listed, factors, density)
    assert torch.allclose(combined("dare", stack, weights, density=density), dare, atol=1e-6)

    theta_0 = vectors(shape, 1, seed=9)[0]
    merged = merge_tensor(theta_0, [theta_0 + each for each in stack], alpha=1.0, weights=weights)
    arithmetic = merge_utils.task_arithmetic(listed, factors)
    assert torch.allclose(
        merged, theta_0 + arithmetic, atol=2e-6
    )  # theta_0 + tau - theta_0 is tau to 1e-7 a term


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
    stack = torch.randint(-3, 4, (3, 8, 9), generator=torch.Generator().manual_seed(1)).float()
    expected = slow_ties(stack.flatten(1).tolist(), density)
    assert combined("ties", stack, density=density).flatten().tolist() == pytest.approx(expected)


def draws(count: int, which: int) -> list[int]:
    """The top 53 bits of Philox' words, one at a time."""
    digest = hashlib.sha256(f"{KEY.seed}#{which}:{KEY.name}".encode()).digest()[:16]
    generator = np.random.Philox(key=int.from_bytes(digest, "little"))
    return [int(generator.random_raw()) // 2**11 for _ in range(count)]


def test_dare_draws_for_each_checkpoint_by_itself() -> None:
    stack = torch.ones(2, 30, 10)
    result = combined("dare", stack, (1.0, 10.0), density=0.25).flatten().tolist()
    kept = [[draw < 2**51 for draw in draws(300, which)] for which in range(2)]
    assert result == [4.0 * a + 40.0 * b for a, b in zip(*kept, strict=True)]
    assert kept[0] != kept[1]


@pytest.mark.parametrize("shape", [(7, 9), (12,), (3, 2, 2, 2), (5, 1)], ids=str)
def test_della_entry_by_entry(shape: tuple[int, ...]) -> None:
    stack = vectors(shape, 2)
    rows = stack.flatten(2) if len(shape) > 1 else stack.unsqueeze(1)
    thinned = []
    for which, matrix in enumerate(rows.tolist()):
        words = iter(draws(stack[0].numel(), which))
        kept = []
        for row in matrix:
            ranked = sorted(range(len(row)), key=lambda i: (abs(row[i]), i))
            for i, value in enumerate(row):
                share = ranked.index(i) / (len(row) - 1) if len(row) > 1 else 0.5
                chance = 0.6 + 0.4 * (share - 0.5)
                kept.append(value / chance if next(words) < chance * 2**53 else 0.0)
        thinned.append(kept)
    expected = slow_ties(thinned, 1.0)
    result = combined("della", stack, density=0.6, window=0.4)
    assert result.flatten().tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "options", [{"density": 0.05, "window": 0.1}, {"density": 0.9, "window": 0.4}]
)
def test_a_window_that_gives_no_probabilities_is_refused(
    options: dict[str, float], family: list[Path]
) -> None:
    with pytest.raises(
        RecipeError, match=r"della: density .* give probabilities from .*; choose a smaller window"
    ):
        combined("della", vectors((3, 4)), **options)
    with pytest.raises(RecipeError, match="choose a smaller window"):
        decide(task_of(family), "della", **options)


@pytest.mark.parametrize(
    ("density", "outliers"), [(0.5, 0.25), (0.3, 0.0), (1.0, 0.3), (1e-6, 0.5), (0.5, 1.0)]
)
def test_breadcrumbs_entry_by_entry(density: float, outliers: float) -> None:
    stack = torch.randint(-9, 10, (2, 4, 10), generator=torch.Generator().manual_seed(2)).float()
    expected = [0.0] * 40
    for row in stack.flatten(1).tolist():
        ranked = sorted(range(40), key=lambda i: (-abs(row[i]), i))
        first = min(round(outliers * 40), 39)
        for i in ranked[first : first + max(1, round(density * 40))]:
            expected[i] += row[i]
    result = combined("breadcrumbs", stack, density=density, outliers=outliers)
    assert result.flatten().tolist() == expected


def test_an_entry_that_nobody_moves_is_zero_shot_bit_for_bit() -> None:
    theta_0 = torch.full((4, 8), -0.0)
    finetuned = [theta_0 + each for each in vectors((4, 8), 2)]
    rule = bind_combination("ties", {"density": 0.25}, (1.0, 1.0), KEY)
    merged = merge_tensor(theta_0, finetuned, alpha=0.7, weights=(1.0, 1.0), combine=rule)
    gone = merged == 0
    assert 0 < int(gone.sum()) < 32
    assert bool(torch.signbit(merged[gone]).all())
    assert torch.equal(
        merge_tensor(theta_0, finetuned, alpha=0.0, weights=(1.0, 1.0), combine=rule), theta_0
    )


def test_a_mask_comes_after_the_combination() -> None:
    theta_0, *finetuned = (
        torch.zeros(2, 4),
        torch.tensor([[4.0, 1, 0, 0]] * 2),
        torch.tensor([[2.0, -3, 0, 1]] * 2),
    )
    rule = bind_combination("ties", {"density": 1.0}, (1.0, 1.0), KEY)
    given = {"weights": (1.0, 1.0), "combine": rule}
    assert merge_tensor(theta_0, finetuned, alpha=2.0, **given).tolist() == [[6, -6, 0, 2]] * 2
    masked = merge_tensor(theta_0, finetuned, alpha=2.0, mask="magnitude", density=0.25, **given)
    assert masked.tolist() == [[6, -6, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("method", RULES)
def test_every_parameter_goes_through_the_rule_of_its_name(family: list[Path], method: str) -> None:
    task = task_of(family)
    decision = decide(task, method, alpha=0.7)
    assert decision.layers.keys() == task.layers.keys()
    assert decision.combine is not None
    result = merged(
        task, decision, seed=KEY.seed, chunk=100
    )  # a rule sees whole parameters whatever the chunks
    base, *others = (load_file(folder / "model.safetensors") for folder in family)
    for name, value in base.items():
        stack = torch.stack([other[name] - value for other in others])
        key = RandomKey(KEY.seed, name)
        change = bind_combination(method, {}, (1.0,) * 3, key, sparsify=value.numel() > 1)(stack)
        assert torch.allclose(result[name], value + 0.7 * change, atol=1e-6), name
    assert result["logit_scale"].shape == ()


def test_with_one_checkpoint_it_is_another_method_or_thins_it_out(family: list[Path]) -> None:
    task = task_of(family[:2])
    base, other = (load_file(folder / "model.safetensors") for folder in family[:2])
    for method in ("ties", "task-arithmetic"):
        with pytest.raises(
            RecipeError,
            match=f"method {method}: needs at least two fine-tuned checkpoints; with one",
        ):
            decide(task, method)
    for method, kept in (("dare", 0.5), ("della", 0.5), ("breadcrumbs", 0.15)):
        result = merged(task, decide(task, method, alpha=1.0))
        moved = {
            name: float((result[name] != base[name]).double().mean())
            for name in base
            if base[name].numel() > 200
        }
        assert all(share == pytest.approx(kept, abs=0.12) for share in moved.values())
        assert torch.allclose(result["logit_scale"], other["logit_scale"])
    # ties of one is breadcrumbs without outliers, as the message says
    result = merged(task, decide(task, "breadcrumbs", alpha=1.0, density=0.2, outliers=0.0))
    for name, value in base.items():
        change = torch.tensor(slow_ties([(other[name] - value).flatten().tolist()], 0.2)).view(
            value.shape
        )
        assert torch.allclose(result[name], value + change, atol=1e-6)


@pytest.mark.parametrize(
    ("combine", "message"),
    [
        (
            {"rule": "tise"},
            r"combine: no combination 'tise' \(combinations: .*\)\. Did you mean 'ties'",
        ),
        (
            {"rule": "ties", "options": {"densty": 1}},
            "combine: combination ties: no option 'densty'.*'density'",
        ),
    ],
)
def test_a_plan_of_an_impossible_combination_is_refused(
    tmp_path: Path, combine: dict[str, Any], message: str
) -> None:
    plan = plan_with(
        {"a": LayerPlan(alpha=1.0)}, combine=Combination(rule="ties", options={"density": 0.5})
    )
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json())
    assert read_plan(file) == plan
    assert read_plan(file).checked({"a": ()}).digest == plan.digest
    file.write_text(json.dumps({**json.loads(plan.to_json()), "combine": combine}))
    with pytest.raises(PlanError, match=message):
        read_plan(file).checked({"a": ()})


@pytest.mark.parametrize(
    "recipe",
    # fast are that without a rule, and one that draws
    [
        "task-arithmetic",
        *(pytest.param(rule, marks=[pytest.mark.slow] * (rule != "della")) for rule in RULES),
    ],
)
def test_the_command_writes_the_same_bytes_each_time_and_by_way_of_a_plan(
    family: list[Path], tmp_path: Path, recipe: str
) -> None:
    first, again, other, by_plan = (
        tmp_path / name for name in ("first", "again", "other", "by-plan")
    )
    made = done("merge", *family, "--recipe", recipe, "--output", first, "--json")
    done("merge", *family, "--recipe", recipe, "--output", again)
    done("merge", *family, "--recipe", recipe, "--output", other, "--seed", 1)
    done("plan", *family, "--recipe", recipe, "--output", tmp_path / "plan.json")
    done("apply", tmp_path / "plan.json", "--output", by_plan)
    bytes_of = {
        folder.name: (folder / "model.safetensors").read_bytes()
        for folder in (first, again, other, by_plan)
    }
    assert bytes_of["first"] == bytes_of["again"] == bytes_of["by-plan"]
    assert (bytes_of["first"] != bytes_of["other"]) is (recipe in ("dare", "della"))
    rule = made.json["combine"]
    assert (rule and rule["rule"]) == (None if recipe == "task-arithmetic" else recipe)
