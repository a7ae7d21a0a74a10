"""Interpolation instability of single layers and of sets that grow, against the model run once more
in float64."""

from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from clipmerge.methods import Task
from clipmerge.planning.measurements import Measurements, Statistic
from clipmerge.plugins import load_plugin
from tests.support.small_objective import Ends, Reference, make_batches, objective_for, save_ends
from tests.support.tasks import decide, inputs_of

SIZES = (5, 3)
POINTS = 2


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    return save_ends(tmp_path_factory.mktemp("ends"), change=0.3)


def slow_barrier(reference: Reference, names: Collection[str], number: int) -> float:
    """The barrier of a set of parameters on one batch."""
    batch = make_batches(SIZES)[number]
    losses = []
    for step in range(POINTS + 2):
        alpha = step / (POINTS + 1)
        with torch.no_grad():
            for name, parameter in reference.parameters.items():
                zeroshot, finetuned = reference.ends[name]
                share = alpha if name in names else 1.0
                parameter.copy_((1 - share) * zeroshot + share * finetuned)
            losses.append(reference.loss(batch).item())
    return max(losses[1:-1]) - (losses[0] + losses[-1]) / 2


def test_instability_is_that_of_the_layer_moved_alone(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    found = load_plugin("measures", "layer-instability")(objective, points=POINTS)["instability"]
    reference = Reference(ends)
    for layer, names in objective.weights.layers.items():
        expected = [slow_barrier(reference, names, number) for number in range(len(SIZES))]
        assert found.batches[layer] == pytest.approx(expected, abs=1e-4), layer
        assert found.values[layer] == pytest.approx(
            (5 * expected[0] + 3 * expected[1]) / 8, abs=1e-4
        )


def test_cumulative_barriers_grow_by_one_layer_and_sum_to_the_paths(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    found = load_plugin("measures", "cumulative-barrier")(objective, points=POINTS)
    reference = Reference(ends)
    order = list(objective.weights.layers)
    whole = {name for names in objective.weights.layers.values() for name in names}
    for name, layers in (("from_first", order), ("from_last", order[::-1])):
        before, joined = 0.0, set()
        for layer in layers:
            joined |= set(objective.weights.layers[layer])
            barrier = slow_barrier(reference, joined, 1)
            assert found[name].batches[layer][1] == pytest.approx(barrier - before, abs=2e-4), (
                name,
                layer,
            )
            before = barrier
        total = sum(values[0] for values in found[name].batches.values())
        assert total == pytest.approx(slow_barrier(reference, whole, 0), abs=1e-3)


@pytest.mark.parametrize(
    ("count", "finding"),
    [
        (1, "the layer with the largest instability is the straggler; it gets alpha 0.4"),
        (2, "the 2 layers with the largest instability are the stragglers; they get alpha 0.4"),
    ],
)
def test_the_largest_are_thinned(pair: tuple[Path, Path], count: int, finding: str) -> None:
    inputs = inputs_of(pair)
    values = {layer: float(place) for place, layer in enumerate(inputs.layers)}
    measurements = Measurements(
        measure="layer-instability", statistics=(Statistic(name="instability", values=values),)
    )
    decision = decide(
        Task(inputs, measurements),
        "straggler-top",
        count=count,
        alpha=0.6,
        straggler_alpha=0.4,
        density=0.3,
    )
    largest = list(inputs.layers)[-count:]
    assert list(decision.stragglers) == largest
    for layer, plan in decision.layers.items():
        expected = (0.4, 0.3, "weights-random") if layer in largest else (0.6, 1.0, None)
        assert (plan.alpha, plan.density, plan.mask) == expected
    assert decision.finding == finding.partition(";")[0]
