"""straggler-outlier and straggler-sparse: masks, and errors that name the method."""

import numpy as np
import pytest

from clipmerge.errors import UsageError
from clipmerge.methods import Task
from clipmerge.planning.measurements import Measurements, Statistic
from clipmerge.planning.recipe import load_recipe
from tests.support.tasks import decide, inputs_of, task_of
from tests.support.tiny_clip import Folders


def task_with(pair: Folders) -> Task:
    """Made-up barriers, of which one is far out, without gradients."""
    inputs = inputs_of(pair)
    barriers = np.random.default_rng(1).normal(size=len(Task(inputs).layers))
    values = dict(zip(Task(inputs).layers, barriers.tolist(), strict=True))
    values["vision.1.mlp"] += 500
    batches = {layer: (value,) * 8 for layer, value in values.items()}
    barrier = Statistic(name="barrier", values=values, batches=batches, signed=True)
    made_up = Measurements(measure="made-up", statistics=(barrier,), batch_sizes=(4,) * 8)
    return Task(inputs, made_up, 0)


def test_an_unknown_mask_or_one_without_its_gradients_is_refused(pair: Folders) -> None:
    method = "straggler-outlier"
    task = task_with(pair)
    with pytest.raises(UsageError, match=f"^method {method}: the saliency mask needs gradients"):
        decide(task, method, bootstraps=20)
    assert decide(task, method, bootstraps=20, mask="magnitude").scores == {}
    with pytest.raises(
        UsageError, match=r"no mask 'saliancy'\. Did you mean 'saliency'\? .masks: "
    ):
        load_recipe(method, {"method.mask": "saliancy"})


@pytest.mark.parametrize(
    ("method", "measure"),
    [
        ("fisher", "fisher"),
        ("learned", "learned-coefficients"),
        ("regmean", "gram"),
        ("straggler-sparse", "learned-sparse"),
        ("wise-ft-id", "path-accuracy"),
    ],
)
def test_the_measure_that_a_method_needs_is_named(pair: Folders, method: str, measure: str) -> None:
    message = rf"method {method}: needs .*; set `measure.name` to {measure} in the recipe"
    for task in (task_with(pair), task_of(pair)):
        with pytest.raises(UsageError, match=message):
            decide(task, method)
