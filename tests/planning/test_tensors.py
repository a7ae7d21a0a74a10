"""Learned coefficients: entry by entry in float32 scalars, kept beside the plan, and refused when
they do not fit.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import clipmerge
from clipmerge import methods
from clipmerge.errors import UsageError
from clipmerge.methods import Decision, Task
from clipmerge.planning.plan import Plan, rows_shape
from tests.support.command import one_line
from tests.support.raw_safetensors import edit_json
from tests.support.tasks import in_runs, inputs_of, plan_of
from tests.support.tiny_clip import Folders, layer_of

Array = np.ndarray[Any, Any]
FC1 = "vision_model.encoder.layers.1.mlp.fc1.weight"
FORMS = ("whole", "row", "entry")
Planner = Callable[..., Plan]


def coefficients_for(task: Task, forms: tuple[str, ...] = FORMS) -> dict[str, Array]:
    """The forms in turn, one per parameter, with exact zeros and ones among the numbers."""
    generator = np.random.default_rng(3)
    found = {}
    for place, (name, shape) in enumerate(sorted(task.shapes.items())):
        wanted = {"whole": (), "row": rows_shape(shape), "entry": shape}[forms[place % len(forms)]]
        drawn = generator.random(wanted) * 1.4 - 0.2
        found[name] = np.asarray(np.clip(drawn, 0, 1), np.float32)
    return found


@pytest.fixture
def planner(pair: Folders, monkeypatch: pytest.MonkeyPatch) -> Planner:
    """Make a plan by a method that gives the coefficients above."""

    def run(*sets: str, forms: tuple[str, ...] = FORMS) -> Plan:
        def method(task: Task, **options: Any) -> Decision:
            layers = task.everywhere(0.5)
            return Decision(layers, "learned", coefficients=coefficients_for(task, forms))

        with monkeypatch.context() as patched:
            patched.setattr(methods, "load_plugin", lambda package, name: method)
            return plan_of(pair, "wise-ft", *sets)

    return run


def weights(folder: Path) -> dict[str, Array]:
    return load_file(folder / "model.safetensors")


def slow_entry(theta_0: Any, theta_1: Any, coefficient: Any) -> float:
    change = np.float32(np.float32(theta_1) - np.float32(theta_0))
    if coefficient in (0, 1):
        return float(theta_1 if coefficient else theta_0)
    return float(np.float32(np.float32(theta_0) + np.float32(change * np.float32(coefficient))))


def test_the_merge_is_the_formula_entry_by_entry(
    planner: Planner, pair: Folders, tmp_path: Path
) -> None:
    plan = planner()
    clipmerge.apply(plan, output=tmp_path / "out")
    zeroshot, finetuned, merged = map(weights, (*pair, tmp_path / "out"))
    inputs = inputs_of(pair)
    coefficients = coefficients_for(Task(inputs))
    for name in (FC1, FC1.replace("weight", "bias"), "logit_scale", "visual_projection.weight"):
        spread = np.broadcast_to(coefficients[name], merged[name].shape)
        for index in np.ndindex(merged[name].shape):
            values = (tensor[index] for tensor in (zeroshot[name], finetuned[name], spread))
            assert float(merged[name][index]) == slow_entry(*values), (name, index)
    for name, tensor in in_runs(inputs, plan, 17).items():
        assert np.array_equal(tensor.numpy(), merged[name])


def test_the_plan_tells_mean_and_range(planner: Planner, pair: Folders) -> None:
    plan, task = planner(), Task(inputs_of(pair))
    coefficients = coefficients_for(task)
    for layer, names in task.layers.items():
        spread = [np.broadcast_to(coefficients[name], task.shapes[name]) for name in names]
        entries = np.concatenate([each.ravel() for each in spread]).astype(np.float64)
        told = plan.layers[layer]
        assert told.alpha == pytest.approx(entries.mean(), abs=1e-7)
        assert told.alpha_range == (entries.min(), entries.max())


def test_an_override_gives_its_layers_one_alpha(planner: Planner, pair: Folders) -> None:
    overrides = "overrides=[{layers: vision.*, alpha: 0}, {layers: text.1.mlp, density: 0.5}]"
    plan = planner(overrides, forms=("entry",))
    assert not any(layer_of(name).startswith("vision.") for name in plan.coefficients)
    zeroshot = weights(pair[0])
    merged = {name: tensor.numpy() for name, tensor in in_runs(inputs_of(pair), plan).items()}
    for name, tensor in merged.items():
        if layer_of(name).startswith("vision."):
            assert np.array_equal(tensor, zeroshot[name])
    name = FC1.replace("vision", "text")
    coefficient = coefficients_for(Task(inputs_of(pair)), ("entry",))[name]
    intended = np.abs(coefficient * (weights(pair[1])[name] - zeroshot[name]))
    kept = merged[name] != zeroshot[name]
    assert kept.sum() == pytest.approx(kept.size / 2, abs=1)
    assert intended[kept].min() >= intended[~kept].max()


# --- a plan and its tensors on the disk ---


@pytest.fixture
def planned(planner: Planner, tmp_path: Path) -> Path:
    planner().save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def apply(plan: Path) -> dict[str, Array]:
    clipmerge.apply(plan, output=plan.with_name("out"), overwrite=True)
    return weights(plan.with_name("out"))


def test_a_plan_whose_coefficients_are_gone_or_changed_is_refused(planned: Path) -> None:
    file = planned.with_suffix(".tensors.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UsageError, match="the tensors beside the plan: the file has changed"):
        apply(planned)
    file.unlink()
    with pytest.raises(UsageError, match="the tensors beside the plan: the file is missing"):
        apply(planned)
    file.write_bytes(whole)
    apply(planned)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.123}, r"alpha 0.123 and alpha_range are not .* remove alpha_range"),
        ({"alpha_range": [0.5, 0.6]}, "are not the mean and range of its coefficients"),
        ({"alpha_range": [0.5]}, r"alpha_range"),
    ],
)
def test_a_hand_edit_against_the_coefficients_is_refused(
    planned: Path, changes: dict[str, Any], message: str
) -> None:
    edit_json(planned, layers={"vision.1.mlp": changes})
    with one_line(UsageError, message):
        apply(planned)


def test_a_hand_edit_gives_a_layer_one_alpha(planned: Path, pair: Folders) -> None:
    edit_json(planned, layers={"vision.1.mlp": {"alpha": 1, "alpha_range": None}})
    assert np.array_equal(apply(planned)[FC1], weights(pair[1])[FC1])


def test_a_layer_that_a_plan_does_not_name_stays_zeroshot_and_is_told(
    planned: Path, pair: Folders
) -> None:
    data = json.loads(planned.read_text())
    del data["layers"]["logit_scale"]
    planned.write_text(json.dumps(data))
    result = clipmerge.apply(planned, output=planned.with_name("out"))
    assert any("does not name 1 layer" in text for text in result.warnings)
    merged = weights(planned.with_name("out"))
    assert np.array_equal(merged["logit_scale"], weights(pair[0])["logit_scale"])
