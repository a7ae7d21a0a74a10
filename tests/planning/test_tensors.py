"""Merges by learned coefficients, against float32 scalars, and the file of the coefficients beside
the plan.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import clipmerge
from clipmerge import methods
from clipmerge.errors import UsageError
from clipmerge.methods import Decision, Task
from clipmerge.planning.plan import rows_shape
from tests.support.command import one_line
from tests.support.raw_safetensors import edit_json
from tests.support.tasks import in_runs, inputs_of, plan_of
from tests.support.tiny_clip import Folders, layer_of

Array = np.ndarray[Any, Any]
FC1 = "vision_model.encoder.layers.1.mlp.fc1.weight"
FC2 = "text_model.encoder.layers.1.mlp.fc2.weight"


def coefficients_for(task: Task) -> dict[str, Array]:
    """One per parameter, row or entry in turn, with exact zeros and ones among the numbers."""
    generator = np.random.default_rng(3)
    found = {}
    for place, (name, shape) in enumerate(sorted(task.shapes.items())):
        form = ((), rows_shape(shape), shape)[place % 3] if name != FC2 else shape
        drawn = generator.random(form) * 1.4 - 0.2
        found[name] = np.asarray(np.clip(drawn, 0, 1), np.float32)
    return found


@pytest.fixture
def plan(pair: Folders, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes plans, with changes to the recipe, by a method that gives the coefficients above."""

    def method(task: Task, **options: Any) -> Decision:
        return Decision(task.everywhere(0.5), "learned", coefficients=coefficients_for(task))

    def make(*sets: str) -> clipmerge.Plan:
        with monkeypatch.context() as patched:
            patched.setattr(methods, "load_plugin", lambda package, name: method)
            return plan_of(pair, "wise-ft", *sets)

    return make


@pytest.fixture
def planned(plan: Any, tmp_path: Path) -> Path:
    plan().save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def weights(folder: Path) -> dict[str, Array]:
    return load_file(folder / "model.safetensors")


def apply(plan: Path) -> dict[str, Array]:
    clipmerge.apply(plan, output=plan.with_name("out"), overwrite=True)
    return weights(plan.with_name("out"))


def slow_entry(theta_0: Any, theta_1: Any, coefficient: Any) -> float:
    change = np.float32(np.float32(theta_1) - np.float32(theta_0))
    if coefficient in (0, 1):
        return float(theta_1 if coefficient else theta_0)
    return float(np.float32(np.float32(theta_0) + np.float32(change * np.float32(coefficient))))


def test_the_merge_is_the_formula_entry_by_entry(planned: Path, pair: Folders) -> None:
    zeroshot, finetuned, merged = (*map(weights, pair), apply(planned))
    inputs = inputs_of(pair)
    coefficients = coefficients_for(Task(inputs))
    for name in (FC1, FC1.replace("weight", "bias"), "logit_scale", "visual_projection.weight"):
        spread = np.broadcast_to(coefficients[name], merged[name].shape)
        for index in np.ndindex(merged[name].shape):
            values = (tensor[index] for tensor in (zeroshot[name], finetuned[name], spread))
            assert float(merged[name][index]) == slow_entry(*values), (name, index)
    for name, tensor in in_runs(inputs, clipmerge.Plan.load(planned), 17).items():
        assert np.array_equal(tensor.numpy(), merged[name])


def test_the_plan_states_mean_and_range(plan: Any, pair: Folders) -> None:
    made, task = plan(), Task(inputs_of(pair))
    coefficients = coefficients_for(task)
    for layer, names in task.layers.items():
        spread = [np.broadcast_to(coefficients[name], task.shapes[name]) for name in names]
        entries = np.concatenate([each.ravel() for each in spread]).astype(np.float64)
        assert made.layers[layer].alpha == pytest.approx(entries.mean(), abs=1e-7)
        assert made.layers[layer].alpha_range == (entries.min(), entries.max())


def test_an_override_gives_its_layers_one_alpha(plan: Any, pair: Folders) -> None:
    made = plan("overrides=[{layers: vision.*, alpha: 0}, {layers: text.1.mlp, density: 0.5}]")
    zeroshot, finetuned = map(weights, pair)
    inputs = inputs_of(pair)
    merged = {name: tensor.numpy() for name, tensor in in_runs(inputs, made).items()}
    vision = [name for name in merged if layer_of(name).startswith("vision.")]
    assert made.coefficients.keys().isdisjoint(vision)
    assert all(np.array_equal(merged[name], zeroshot[name]) for name in vision)
    coefficient = coefficients_for(Task(inputs))[FC2]
    intended = np.abs(coefficient * (finetuned[FC2] - zeroshot[FC2]))
    kept = merged[FC2] != zeroshot[FC2]
    assert kept.sum() == pytest.approx(kept.size / 2, abs=1)
    assert intended[kept].min() >= intended[~kept].max()


def test_a_plan_whose_coefficients_are_gone_or_changed_is_refused(planned: Path) -> None:
    file = planned.with_suffix(".tensors.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for _ in range(2):
        with one_line(UsageError, "the plan's tensors are missing or have changed; plan again"):
            apply(planned)
        file.unlink(missing_ok=True)


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


def test_hand_edits_give_a_layer_one_alpha_or_leave_it_zero_shot(
    planned: Path, pair: Folders
) -> None:
    edit_json(planned, layers={"vision.1.mlp": {"alpha": 1, "alpha_range": None}})
    data = json.loads(planned.read_text())
    del data["layers"]["logit_scale"]
    planned.write_text(json.dumps(data))
    result = clipmerge.apply(planned, output=planned.with_name("out"))
    assert any("layers without a setting stay zero-shot" in text for text in result.warnings)
    zeroshot, finetuned, merged = map(weights, (*pair, planned.with_name("out")))
    assert np.array_equal(merged[FC1], finetuned[FC1])
    assert np.array_equal(merged["logit_scale"], zeroshot["logit_scale"])
