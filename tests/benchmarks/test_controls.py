"""The controls and baselines of the benchmarks: the choice of stand-ins, other layers than the
sharpest, weights set to zero, and the recipes from the command line."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from clipmerge.errors import RecipeError
from clipmerge.learning.objective import Objective
from clipmerge.merging.selection import RandomKey
from clipmerge.merging.tensor import merge_tensor
from clipmerge.methods import Decision, Task
from clipmerge.planning.measurements import Measurements
from clipmerge.planning.plan import LayerPlan
from clipmerge.planning.recipe import load_recipe
from clipmerge.plugins import check_options, load_plugin, plugin_options
from tests.benchmarks.conftest import PLUGINS
from tests.methods.test_straggler_outlier import STRAGGLERS, decide, task_with
from tests.support.command import done
from tests.support.small_objective import Ends, make_batches, objective_for
from tests.support.tasks import in_chunks, inputs_of, plan_with
from tests.support.tiny_clip import Folders

RECIPES = sorted((PLUGINS / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_option_stands_in_the_recipe(file: Path) -> None:
    data = yaml.safe_load(file.read_text())
    assert load_recipe(file.stem).name == file.stem
    for section in ("measure", "method"):
        known = plugin_options(f"{section}s", data[section]["name"])
        assert data[section].keys() - {"name"} == known.keys()


@pytest.mark.slow
def test_the_command_line_merges_with_a_control(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    few = (
        "--data",
        images,
        "--images",
        "12",
        "--set",
        "measure.points=1",
        "--no-verdict",
        "--output",
        tmp_path / "out",
    )
    ended = done("merge", *pair, "-r", "straggler-instability", *few)
    assert "3 layers" in ended.out
    zeroshot, merged = (
        load_file(folder / "model.safetensors") for folder in (pair[0], tmp_path / "out")
    )
    zeroed = {name for name, value in merged.items() if bool((value == 0).any())}
    before = {name for name, value in zeroshot.items() if bool((value == 0).any())}
    assert len(zeroed - before) >= 3


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


def test_more_stragglers_than_other_layers_are_refused(pair: Folders) -> None:
    """Only layers that fine-tuning moved can stand in."""
    task = task_with((pair[0], pair[0]), seed=0)
    with pytest.raises(RecipeError, match="random-matched: 2 stragglers and only 0 other layers"):
        decide(task, "random-matched")


def test_shrinking_is_straggler_outlier_without_a_mask(pair: Folders) -> None:
    task = task_with(pair)
    expected = decide(task, "straggler-outlier", mask=None, straggler_alpha=0.1)
    assert decide(task, "straggler-shrink", straggler_alpha=0.1) == expected
    assert {layer for layer, entry in expected.layers.items() if entry.alpha == 0.1} == set(
        STRAGGLERS
    )


def test_controls_take_over_options_with_their_defaults_and_ranges() -> None:
    outlier = plugin_options("methods", "straggler-outlier")
    without_mask = {
        name: value
        for name, value in outlier.items()
        if name not in ("density", "mask", "mask_options")
    }
    assert plugin_options("methods", "random-matched") == {"pool": 3, **outlier}
    assert plugin_options("methods", "straggler-shrink") == without_mask
    for method in ("straggler-shrink", "random-matched"):
        with pytest.raises(RecipeError, match=f"method {method}: option 'stability' cannot be 1.5"):
            check_options("methods", method, {"stability": 1.5})


def stragglers(found: Measurements, objective: Objective) -> list[str]:
    return [layer for layer in objective.weights.layers if found["straggler"].values[layer]]


def learned(ends: Ends, measure: str, **options: object) -> tuple[Measurements, list[str]]:
    objective = objective_for(ends, make_batches((8, 8, 7)))
    few = {"distill": "predictions", "held_back": 0, "steps": 1, "share": 0.3}
    found = load_plugin("measures", measure)(objective, **few, **options)
    return found, stragglers(found, objective)


def test_the_control_makes_the_flattest_layers_sparse(ends: Ends) -> None:
    sharp, sharpest = learned(ends, "learned-sparse")
    flat, flattest = learned(ends, "learned-sparse-control")
    assert flat["sharpness"] == sharp["sharpness"]
    blocks = {
        layer: value for layer, value in flat["sharpness"].values.items() if layer.count(".") == 2
    }
    assert flattest
    assert set(flattest) == set(sorted(blocks, key=blocks.__getitem__)[: len(flattest)])
    assert not set(flattest) & set(sharpest)


@pytest.mark.slow
def test_random_layers_depend_on_their_number_alone(ends: Ends) -> None:
    first, again, other = (
        learned(ends, "learned-sparse-control", layers="random", draw=draw)[1] for draw in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_weights_are_zeroed_at_random_and_the_rest_is_the_plain_merge() -> None:
    generator = torch.Generator().manual_seed(0)
    theta_0 = torch.randn(200, 100, generator=generator)
    theta_1 = theta_0 + torch.randn(200, 100, generator=generator)
    plain = merge_tensor(theta_0, theta_1, alpha=0.3)
    key = RandomKey(0, "x")
    merged = merge_tensor(theta_0, theta_1, alpha=0.3, mask="weights-random", density=0.25, key=key)
    zeroed = merged == 0
    assert torch.equal(merged[~zeroed], plain[~zeroed])
    assert float(zeroed.double().mean()) == pytest.approx(0.75, abs=0.02)
    everything = merge_tensor(
        theta_0, theta_1, alpha=0.3, mask="weights-random", density=1, key=key
    )
    assert torch.equal(everything, plain)


def test_weights_are_zeroed_alike_in_pieces_and_whole(pair: Folders) -> None:
    inputs = inputs_of(pair)
    entry = LayerPlan(alpha=0.5, mask="weights-random", density=0.5)
    plan = plan_with(dict.fromkeys(inputs.merged_layers, entry))
    whole, pieces = in_chunks(inputs, plan), in_chunks(inputs, plan, chunk=1000)
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
