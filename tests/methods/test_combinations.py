"""Methods that mask each of several task vectors, against loops over their masks and against peft."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.utils import merge_utils
from safetensors.numpy import load_file

from clipmerge.errors import UsageError
from clipmerge.merging import bind_mask, disjoint_mean
from clipmerge.merging.selection import RandomKey
from tests.support.command import done
from tests.support.tasks import decide, merge_masked, merged, task_of

Array = np.ndarray[Any, Any]
#: The mask of each method, with its default density, and whether signs are elected.
METHODS = {
    "breadcrumbs": ("breadcrumbs", 0.15, False),
    "dare": ("random-rescale", 0.5, False),
    "della": ("mag-prune", 0.5, True),
    "ties": ("magnitude", 0.2, True),
}


def slow_mean(vectors: list[Array]) -> Array:
    """The mean of those that have the sign of their sum, entry by entry."""
    result = []
    for entries in zip(*(vector.ravel().tolist() for vector in vectors), strict=True):
        agree = [value for value in entries if value and (value > 0) == (sum(entries) >= 0)]
        result.append(sum(agree) / len(agree) if agree else 0.0)
    return np.reshape(result, vectors[0].shape)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 2.0, 1.5)])
def test_peft_says_the_same_of_ties(weights: tuple[float, ...]) -> None:
    stack = np.random.default_rng(0).standard_normal((3, 400, 500)).astype(np.float32)
    expected = merge_utils.ties(list(torch.from_numpy(stack)), torch.tensor(weights), 0.25)
    vectors = [bind_mask("magnitude", 0.25, {})(vector) for vector in stack.copy()]
    assert np.allclose(disjoint_mean(vectors, weights), expected.numpy(), atol=1e-6)


def test_signs_of_equal_sizes_are_elected_entry_by_entry() -> None:
    # small integers cancel to a sum of zero
    vectors = list(np.random.default_rng(1).integers(-3, 4, (3, 8, 9)).astype(np.float32))
    assert np.allclose(disjoint_mean(vectors, (1.0,) * 3), slow_mean(vectors), rtol=1e-6)


def test_a_mask_of_the_change_comes_last() -> None:
    theta_0 = np.zeros((2, 4), np.float32)
    finetuned = [np.array([row] * 2, np.float32) for row in ([4.0, 1, 0, 0], [2.0, -3, 0, 1])]
    given: Any = {"alpha": 2.0, "weights": (1.0, 1.0), "elect_signs": True}
    assert merge_masked(theta_0, finetuned, **given).tolist() == [[6, -6, 0, 2]] * 2
    masked = merge_masked(theta_0, finetuned, mask=bind_mask("magnitude", 0.25, {}), **given)
    assert masked.tolist() == [[6, -6, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_every_task_vector_has_the_mask_of_its_method(
    family: list[Path], method: str, count: int
) -> None:
    task = task_of(family[: 1 + count])
    if method == "ties" and count == 1:
        with pytest.raises(UsageError, match="method ties: needs at least two fine-tuned"):
            decide(task, method)
        return
    decision = decide(task, method, alpha=0.7)
    # a mask sees whole parameters whatever the runs
    result = merged(task, decision, seed=3, run=100)
    mask, density, elects = METHODS[method]
    base, *others = (load_file(folder / "model.safetensors") for folder in family[: 1 + count])
    for name, value in base.items():
        vectors = [other[name] - value for other in others]
        if value.size > 1:
            keys = [RandomKey(3, name).for_checkpoint(which) for which in range(count)]
            bound = [bind_mask(mask, density, {}, key=key) for key in keys]
            vectors = [keep(vector) for keep, vector in zip(bound, vectors, strict=True)]
        change = slow_mean(vectors) if elects else sum(vectors)
        assert np.allclose(result[name].numpy(), value + 0.7 * change, atol=1e-6), name
    assert result["logit_scale"].shape == ()


def test_a_window_too_wide_is_refused_before_merging(family: list[Path]) -> None:
    with pytest.raises(UsageError, match=r"method della: density 0\.05 and window"):
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
