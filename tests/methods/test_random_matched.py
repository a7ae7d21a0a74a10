"""straggler-outlier, its variants and its control: masks, errors in their own names, and the choice
of stand-ins."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clipmerge.errors import RecipeError
from clipmerge.methods import Decision, Task
from clipmerge.planning.measurements import Measurements, Statistic
from clipmerge.plugins import check_options
from tests.support import tasks
from tests.support.tasks import inputs_of, task_of
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


def norms(pair: Folders, task: Task) -> dict[str, float]:
    zeroshot, finetuned = (load_file(folder / "model.safetensors") for folder in pair)
    return {
        layer: np.linalg.norm(
            np.concatenate([(finetuned[n] - zeroshot[n]).double().numpy().ravel() for n in names])
        )
        for layer, names in task.layers.items()
    }


def stand_ins(decision: Decision, like: Decision) -> list[str]:
    edit = like.layers[STRAGGLERS[0]].model_dump(exclude={"reason"})
    return [
        layer
        for layer, entry in decision.layers.items()
        if entry.model_dump(exclude={"reason"}) == edit
    ]


def test_the_layer_that_moved_most_nearly_as_far_gets_the_edit(pair: Folders) -> None:
    task = task_with(pair)
    sparse = decide(task, "straggler-outlier", straggler_alpha=0.1, density=0.3)
    assert set(sparse.stragglers) == set(STRAGGLERS)
    control = decide(task, "random-matched", straggler_alpha=0.1, density=0.3, pool=1)
    moved = norms(pair, task)
    free = [layer for layer in task.layers if layer not in STRAGGLERS]
    expected = []
    for straggler in sparse.stragglers:
        nearest = min(free, key=lambda layer: abs(np.log(moved[layer]) - np.log(moved[straggler])))
        free.remove(nearest)
        expected.append(nearest)
    chosen = stand_ins(control, sparse)
    assert set(chosen) == set(expected)
    for layer in task.layers:
        if layer not in chosen:
            assert control.layers[layer].model_dump(exclude={"reason"}) == sparse.layers[
                "logit_scale"
            ].model_dump(exclude={"reason"})
    assert control.scores.keys() == {name for layer in chosen for name in task.layers[layer]}
    assert control.stragglers == sparse.stragglers
    assert all(layer in control.verdict for layer in (*chosen, *STRAGGLERS))


def test_more_stragglers_than_other_layers_are_refused(pair: Folders) -> None:
    """Only layers that fine-tuning moved can stand in."""
    task = task_with((pair[0], pair[0]), seed=0)
    with pytest.raises(
        RecipeError, match="random-matched: 2 stragglers and only 0 other layers that"
    ):
        decide(task, "random-matched")


UNKNOWN = r"statistic 'barier' is not measured by made-up \(barrier\)"


@pytest.mark.parametrize(
    ("method", "unknown"),
    [
        *(
            (method, UNKNOWN)
            for method in ("straggler-outlier", "straggler-shrink", "random-matched")
        ),
        ("straggler-top", r"the measure has no statistic 'barier' \(statistics: barrier\)"),
        ("straggler-sparse", None),
    ],
)
def test_errors_name_the_method_that_was_asked_for(
    pair: Folders, method: str, unknown: str | None
) -> None:
    task = task_with(pair)
    for wrong, options, reason in (
        (task_of((*pair, pair[1]), task.measurements), {}, "takes one fine-tuned checkpoint"),
        (dataclasses.replace(task, measurements=None), {}, "needs a `measure:`"),
        (task, {"statistic": "barier"}, unknown),
    ):
        if reason is not None:
            with pytest.raises(RecipeError, match=rf"^method {method}: {reason}"):
                tasks.decide(wrong, method, **options)


@pytest.mark.parametrize("method", ["straggler-outlier", "random-matched"])
def test_a_mask_that_is_not_there_or_lacks_its_gradients_is_refused(
    pair: Folders, method: str
) -> None:
    task = task_with(pair)
    assert task.measurements is not None
    task.measurements.gradients.clear()
    with pytest.raises(RecipeError, match=f"^method {method}: the saliency mask needs gradients"):
        decide(task, method)
    assert decide(task, method, mask="magnitude").scores == {}
    with pytest.raises(
        RecipeError,
        match=r"option 'mask' cannot be 'saliancy': .*masks: magnitude.*mean 'saliency'",
    ):
        check_options("methods", method, {"mask": "saliancy"})


def test_another_measure_makes_no_layer_sparse(pair: Folders) -> None:
    told = (
        r"method straggler-sparse: made-up makes no layer sparse; measure with learned-sparse, or"
        r" use the method"
    )
    with pytest.raises(RecipeError, match=told):
        tasks.decide(task_with(pair), "straggler-sparse")
