"""straggler-outlier and straggler-sparse: masks, and errors that name the method."""

import numpy as np
import pytest
import torch

from clipmerge.errors import UsageError
from clipmerge.methods import Decision, Task
from clipmerge.planning.measurements import Measurements, Statistic
from clipmerge.plugins import check_options
from tests.support import tasks
from tests.support.tasks import inputs_of
from tests.support.tiny_clip import Folders

STRAGGLERS = ("vision.1.mlp", "text.0.attn")


def task_with(pair: Folders, stragglers: tuple[str, ...] = STRAGGLERS, seed: int = 0) -> Task:
    """Made-up barriers in which some layers stand far out, and a gradient of ones."""
    opened = inputs_of(pair)
    layers = Task(opened).layers
    rng = np.random.default_rng(1)
    values = {layer: float(rng.normal()) + 500 * (layer in stragglers) for layer in layers}
    batches = {layer: (value,) * 8 for layer, value in values.items()}
    gradients = {
        name: torch.ones_like(opened.theta_0(name)) for names in layers.values() for name in names
    }
    measurements = Measurements(
        measure="made-up",
        statistics=(Statistic(name="barrier", values=values, batches=batches, signed=True),),
        batch_sizes=(4,) * 8,
        gradients=gradients,
    )
    return Task(opened, measurements, seed)


def decide(task: Task, method: str, **options: object) -> Decision:
    return tasks.decide(task, method, bootstraps=20, **options)


def test_a_mask_that_is_not_there_or_lacks_its_gradients_is_refused(pair: Folders) -> None:
    method = "straggler-outlier"
    task = task_with(pair)
    assert task.measurements is not None
    task.measurements.gradients.clear()
    with pytest.raises(UsageError, match=f"^method {method}: the saliency mask needs gradients"):
        decide(task, method)
    assert decide(task, method, mask="magnitude").scores == {}
    with pytest.raises(
        UsageError, match=r"option 'mask' cannot be 'saliancy': .*mean 'saliency'.*masks: "
    ):
        check_options("methods", method, {"mask": "saliancy"})


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
    told = rf"method {method}: needs .*; set `measure.name` to {measure} in the recipe"
    for task in (task_with(pair), tasks.task_of(pair)):
        with pytest.raises(UsageError, match=told):
            tasks.decide(task, method)
