"""straggler-outlier, its variant and its control: each has its own name in errors, and any mask works."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from clipmerge.checkpoint import align_checkpoints, open_checkpoint
from clipmerge.errors import RecipeError
from clipmerge.methods import Task
from clipmerge.plugins import check_options, load_plugin, plugin_names, plugin_options
from tests.methods.test_random_matched import STRAGGLERS, decide, task_with

METHODS = ("straggler-outlier", "straggler-shrink", "random-matched")
UNKNOWN = r"statistic 'barier' is not measured by made-up \(barrier\)"


@pytest.mark.parametrize(
    ("method", "unknown"),
    [
        *((method, UNKNOWN) for method in METHODS),
        ("straggler-top", r"the measure has no statistic 'barier' \(statistics: barrier\)"),
        ("straggler-sparse", None),
    ],
)
def test_errors_name_the_method_that_was_asked_for(pair: tuple[Path, Path], method: str, unknown: str | None) -> None:
    task = task_with(pair)
    zeroshot, finetuned = (open_checkpoint(str(folder)) for folder in pair)
    several = Task(align_checkpoints(zeroshot, [finetuned, finetuned]), task.measurements)
    for wrong, options, reason in (
        (several, {}, "takes one fine-tuned checkpoint"),
        (dataclasses.replace(task, measurements=None), {}, "needs a `measure:`"),
        (task, {"statistic": "barier"}, unknown),
    ):
        if reason is not None:
            with pytest.raises(RecipeError, match=rf"^method {method}: {reason}"):
                load_plugin("methods", method)(wrong, **options)


@pytest.mark.parametrize("method", ["straggler-outlier", "random-matched"])
def test_a_mask_without_its_gradients_is_refused_in_the_name_of_the_method(
    pair: tuple[Path, Path], method: str
) -> None:
    task = task_with(pair)
    assert task.measurements is not None
    task.measurements.gradients.clear()
    with pytest.raises(RecipeError, match=f"^method {method}: the saliency mask needs gradients"):
        decide(task, method)


@pytest.mark.parametrize("mask", plugin_names("masks"))
def test_every_mask_serves_and_only_those_with_a_density_get_one(pair: tuple[Path, Path], mask: str) -> None:
    decision = decide(task_with(pair), "straggler-outlier", mask=mask, density=0.25)
    for straggler in STRAGGLERS:
        entry = decision.layers[straggler]
        assert entry.mask == mask
        assert entry.density == (0.25 if "density" in plugin_options("masks", mask) else 1.0)
    assert bool(decision.scores) == (mask == "saliency")


@pytest.mark.parametrize("method", ["straggler-outlier", "random-matched"])
def test_a_mask_that_there_is_not_is_refused(method: str) -> None:
    with pytest.raises(RecipeError, match=r"option 'mask' cannot be 'saliancy': .*masks: magnitude.*mean 'saliency'"):
        check_options("methods", method, {"mask": "saliancy"})
