"""The requirements for every measure, found by their files."""

import json
import math

import pytest
import torch
from torch import Tensor

from clipmerge.learning.objective import Objective
from clipmerge.models.transformers_clip import TransformersClip
from clipmerge.planning.measurements import Measurements
from clipmerge.plugins import plugin_names
from tests.support.command import several
from tests.support.measure_everything import SIZES, measured
from tests.support.small_objective import Ends, make_batches, objective_for
from tests.support.told import Told

MEASURES = plugin_names("measures")
LEARN = (
    "learned-coefficients",
    "learned-sparse",
    "projection-radii",
)  # their results are not averages over batches


@pytest.fixture(scope="module")
def objective(ends: Ends) -> Objective:
    return objective_for(ends, make_batches(SIZES))


@pytest.fixture(scope="module")
def found(objective: Objective) -> dict[str, Measurements]:
    """Every measure on one objective, each after those before it."""
    return {name: measured(name, objective) for name in MEASURES}


@pytest.mark.parametrize("name", MEASURES)
def test_every_changed_layer_gets_finite_values_that_survive_json(
    found: dict[str, Measurements], objective: Objective, name: str
) -> None:
    record = found[name]
    assert record.measure == name
    for statistic in record.statistics:
        assert list(statistic.values) == list(objective.path.layers)
        assert all(math.isfinite(value) for value in statistic.values.values())
        assert statistic.title
        assert statistic.about.endswith(".")
        assert statistic.signed or min(statistic.values.values()) >= 0
    again = Measurements.model_validate_json(record.model_dump_json())
    assert again == record.model_copy(update={"gradients": {}, "coefficients": {}, "tensors": {}})


@pytest.mark.parametrize("name", MEASURES)
def test_a_batch_that_is_repeated_begins_from_nothing(
    found: dict[str, Measurements], ends: Ends, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Memory runs out after a forward pass of more than two images."""
    real = TransformersClip.image_features

    def failing(self: TransformersClip, pixels: Tensor) -> Tensor:
        features = real(self, pixels)
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return features

    monkeypatch.setattr(TransformersClip, "image_features", failing)
    objective = objective_for(ends, make_batches(SIZES), max_images=4)
    again = measured(name, objective)
    for layer, values in found[name].layers.items():
        slack = unseen_share(ends, layer) if name in LEARN else 0.0
        assert again.layers[layer] == pytest.approx(values, rel=1e-3, abs=slack + 1e-5), layer
    for statistic, tensors in found[name].tensors.items():
        largest = max(float(tensor.abs().max()) for tensor in tensors.values())
        for key, tensor in tensors.items():
            repeated = again.tensors[statistic][key]
            assert torch.allclose(repeated, tensor, rtol=1e-3, atol=1e-5 * largest), key


@pytest.mark.parametrize("name", MEASURES)
def test_a_frozen_text_tower_is_left_out_and_the_work_is_announced(frozen: Ends, name: str) -> None:
    told = Told()
    record = measured(name, objective_for(frozen, make_batches((2, 1)), progress=told))
    assert all(layer.startswith("vision.") for layer in record.layers)
    done, announced = told.work[-1]
    assert done == pytest.approx(announced)


def unseen_share(ends: Ends, layer: str) -> float:
    """Share of a layer's entries without effect on a softmax: the gradient of k_proj.bias is
    rounding error."""
    objective = objective_for(ends, make_batches(SIZES))
    sizes = {name: objective.path.parameters[name].numel() for name in objective.path.layers[layer]}
    return sum(size for name, size in sizes.items() if name.endswith("k_proj.bias")) / sum(
        sizes.values()
    )


@pytest.mark.slow
def test_two_processes_measure_the_same_as_one(ends: Ends, found: dict[str, Measurements]) -> None:
    run = several(2, "tests.support.measure_everything", ends[0].parent)
    assert run.returncode == 0, run.stderr[-3000:]
    both = json.loads(run.stdout)
    assert both["processes"] == 2
    for name, record in found.items():
        other = Measurements.model_validate(both["records"][name])
        assert other.batch_sizes == SIZES
        for layer, values in record.layers.items():
            slack = unseen_share(ends, layer) if name in LEARN else 0.0
            assert other.layers[layer] == pytest.approx(values, rel=1e-6, abs=slack + 1e-6), (
                name,
                layer,
            )
        for mine, theirs in zip(record.mixtures, other.mixtures, strict=True):
            assert theirs.weights == mine.weights
            assert (theirs.loss, theirs.accuracy) == pytest.approx(
                (mine.loss, mine.accuracy), rel=1e-6, abs=1e-6
            )
    for name, value in found["path-barrier"].gradients.items():
        assert both["gradients"][name] == pytest.approx(
            value.double().norm().item(), rel=1e-5, abs=1e-6
        )
