"""The plan: JSON both ways, and impossible edits are refused in one line."""

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from clipmerge.planning.provenance import SourceRecord
from pydantic import TypeAdapter, ValidationError

from clipmerge.errors import PlanError
from clipmerge.files.limits import MAX_MEASURED
from clipmerge.finding import Finding
from clipmerge.frozen import LittleMeasured
from clipmerge.output.record import histograms
from clipmerge.planning.plan import LayerPlan, Plan, read_plan
from tests.support.command import one_line
from tests.support.tasks import plan_of

LAYERS = {"vision.1.mlp": ("a.weight", "a.bias"), "vision.10.mlp": ("b.weight",)}


def plan_dict() -> dict[str, Any]:
    record = SourceRecord(source="x", files={"model.safetensors": "0"})
    layers = {name: LayerPlan(alpha=0.5) for name in LAYERS}
    recipe = {"name": "wise-ft", "method": {"name": "wise-ft"}}
    plan = Plan(recipe=recipe, zeroshot=record, finetuned=(record,), weights=(1.0,), layers=layers)
    data: dict[str, Any] = json.loads(plan.signed().to_json())
    return data


EDITS: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "unknown layer": (("layers", "vision.2.mlp"), {"alpha": 1}, r"names layer 'vision\.2\.mlp'.*Did you mean"),
    "unknown mask": (("layers", "vision.1.mlp", "mask"), "magnitud", "unknown mask 'magnitud'.*mean 'magnitude'"),
    "unknown option": (("layers", "vision.1.mlp", "alhpa"), 1, "alhpa: Extra inputs.*Did you mean 'alpha'"),
    "alpha NaN": (("layers", "vision.1.mlp", "alpha"), float("nan"), r"vision\.1\.mlp\.alpha: .*finite"),
    "alpha true": (("layers", "vision.1.mlp", "alpha"), True, r"vision\.1\.mlp\.alpha: .*true or false"),
    "density without mask": (("layers", "vision.1.mlp", "density"), 0.5, "has density 0.5 and no mask; name one"),
    "weights too many": (("weights",), [1, 2], "2 weights for 1 fine-tuned checkpoints"),
    "another format": (("format",), "clipmerge-plan/9", "has the format 'clipmerge-plan/9'.*update clipmerge, or"),
    "no format": (("format",), "x", "format: Input should be 'clipmerge-plan/2'"),
    "parameters without mask": (
        ("layers", "vision.1.mlp", "parameters"), {"a.weight": {}}, "has options of parameters and no mask; name one"
    ),
    "seed": (("seed",), -1, "seed: Input should be greater than or equal to 0"),
    "measure a number": (("recipe", "measure"), 5, r"recipe\.measure: .*dictionary"),
    "recipe without effect": (("recipe", "method", "alpha"), 0.1, "'recipe' was edited, .*edit 'layers', or plan"),
    "tensors elsewhere": (
        ("tensors",), {"file": "../x", "sha256": ""}, r"tensors\.file: .*not the name of a file beside the plan"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_that_says_nonsense_is_refused(tmp_path: Path, what: str) -> None:
    keys, value, message = EDITS[what]
    data = plan_dict()
    target = data
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))
    with one_line(PlanError, message):
        read_plan(file).checked(LAYERS)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            {"mask": "n-m", "mask_options": {"n": 0}},
            "layer 'vision.1.mlp': mask n-m: option 'n' cannot be 0",
        ),
        ({"mask": "n-m", "density": 0.5}, "has density 0.5, which the mask 'n-m' does not have"),
        (
            {"mask": "spectral", "parameters": {"a.weigth": {}}},
            "'a.weigth', which it does not have.*mean 'a.weight'",
        ),
        (
            {"mask": "spectral", "parameters": {"a.weight": {"low": float("nan")}}},
            "option 'low' cannot be nan",
        ),
    ],
)
def test_a_mask_rule_that_says_nonsense_is_refused(
    tmp_path: Path, layer: dict[str, Any], message: str
) -> None:
    data = plan_dict()
    data["layers"]["vision.1.mlp"] = {"alpha": 0.5, **layer}
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(PlanError, match=message):
        read_plan(tmp_path / "plan.json").checked(LAYERS)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text, encoding="latin-1")
    with one_line(PlanError, r"plan\.json: "):
        read_plan(tmp_path / "plan.json")


def test_a_plan_of_very_many_values_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"layers": {' + '"a": {},' * 130_000 + '"b": {}}}')
    with pytest.raises(PlanError, match=r"cannot be read \(more than 250000 values\); make one"):
        read_plan(tmp_path / "plan.json")
    layers = {f"a{number}": {"alpha": 0.5} for number in range(10_001)}
    (tmp_path / "plan.json").write_text(json.dumps(plan_dict() | {"layers": layers}))
    with pytest.raises(PlanError, match="more than 1000 layers"):
        read_plan(tmp_path / "plan.json")


def test_the_digest_tells_parts_of_a_file_and_learned_coefficients_apart() -> None:
    """The hash of a file is that of all models in it; where the file lies does not matter."""
    ema, moved, model = (
        SourceRecord(source=source, files={"x.pt": "0" * 64})
        for source in ("x.pt#ema", "runs/x.pt#ema", "x.pt#model")
    )
    plan = Plan(recipe={}, zeroshot=model, finetuned=(ema,), weights=(1.0,), layers={})
    assert plan.digest == plan.model_copy(update={"finetuned": (moved,)}).digest
    assert plan.digest != plan.model_copy(update={"finetuned": (model,)}).digest
    coefficients = [
        plan.with_tensors({"coefficients:a": torch.tensor([value])}) for value in (0.5, 0.6)
    ]
    assert len({each.digest for each in (plan, *coefficients)}) == 3


def test_more_numbers_than_a_model_has_are_refused() -> None:
    measured: TypeAdapter[Any] = TypeAdapter(Annotated[dict[str, dict[str, float]], LittleMeasured])
    row = {str(number): 0.0 for number in range(MAX_MEASURED // 2)}
    assert len(measured.validate_python({"a": row, "b": row})) == 2
    with pytest.raises(ValidationError, match=f"more than {MAX_MEASURED} numbers"):
        measured.validate_python({"a": row, "b": row, "c": {"x": 1.0}})


def test_parameters_without_coefficients_are_not_counted() -> None:
    towers = {"vision.0.mlp": ("a", "b"), "vision.1.mlp": ("c",), "text.0.mlp": ("d",)}
    coefficients = {"a": torch.tensor([0.0, 0.0, 0.5, 1.0]), "d": torch.tensor([1.0, 1.0])}
    found = histograms(coefficients, towers, {"a": 4, "b": 100, "c": 100, "d": 2})
    assert {tower: sum(counts) for tower, counts in found.items()} == {"vision": 4, "text": 2}
    assert (found["vision"][0], found["vision"][10], found["vision"][20]) == (2, 1, 1)


def test_settings_that_changed_lose_their_reason(pair: tuple[Path, Path]) -> None:
    plan = plan_of(pair, "lines")
    name = "vision.0.mlp"
    layers = {**plan.layers, name: plan.layers[name].model_copy(update={"alpha": 0.9})}
    checked = plan.model_copy(update={"layers": layers}).checked(dict.fromkeys(plan.layers, ()))
    kinds = {layer: entry.reason and entry.reason.kind for layer, entry in checked.layers.items()}
    assert kinds.pop(name) == "edited"
    assert set(kinds.values()) == {"depth", "outside-blocks"}


def test_an_edited_plan_does_not_tell_what_was_learned(pair: tuple[Path, Path]) -> None:
    plan = plan_of(pair, "lines")
    learned, found = Finding.of("learned", coefficients=3), Finding.of("stragglers")
    edited = {**plan.layers, "vision.0.mlp": plan.layers["vision.0.mlp"].replace(alpha=0.9)}
    for decision, layers, kept in (
        (learned, plan.layers, True),
        (learned, edited, False),
        (found, edited, True),
    ):
        changed = plan.replace(decision=decision).signed().replace(layers=layers)
        assert changed.without_stale().decision == (decision if kept else None)


def test_a_reason_that_was_written_with_the_edit_stays(pair: tuple[Path, Path]) -> None:
    plan = plan_of(pair, "lines")
    name = "vision.0.mlp"
    changes = {"alpha": 0.9, "reason": Finding.note("it did better in our runs")}
    layers = {**plan.layers, name: plan.layers[name].model_copy(update=changes)}
    checked = plan.model_copy(update={"layers": layers}).checked(dict.fromkeys(plan.layers, ()))
    assert checked.layers[name].reason == changes["reason"]
