"""The plan: JSON both ways, and impossible edits are refused in one line."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from clipmerge.errors import PlanError
from clipmerge.files.limits import MOST_MEASURED
from clipmerge.planning.frozen import LittleMeasured
from clipmerge.planning.layer_plan import Combination, LayerPlan
from clipmerge.planning.plan import Plan, read_plan, verdict_on
from clipmerge.planning.provenance import SourceRecord
from clipmerge.planning.tensors import histograms
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
    "another format": (("format",), "clipmerge-plan/9", "format: Input should be 'clipmerge-plan/2'"),
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
    row = {str(number): 0.0 for number in range(MOST_MEASURED // 2)}
    assert len(measured.validate_python({"a": row, "b": row})) == 2
    with pytest.raises(ValidationError, match=f"more than {MOST_MEASURED} numbers"):
        measured.validate_python({"a": row, "b": row, "c": {"x": 1.0}})


def test_parameters_without_coefficients_are_not_counted() -> None:
    towers = {"vision.0.mlp": ("a", "b"), "vision.1.mlp": ("c",), "text.0.mlp": ("d",)}
    coefficients = {"a": torch.tensor([0.0, 0.0, 0.5, 1.0]), "d": torch.tensor([1.0, 1.0])}
    found = histograms(coefficients, towers, {"a": 4, "b": 100, "c": 100, "d": 2})
    assert {tower: sum(counts) for tower, counts in found.items()} == {"vision": 4, "text": 2}
    assert (found["vision"][0], found["vision"][10], found["vision"][20]) == (2, 1, 1)


def test_a_method_keeps_its_own_words_while_nothing_changes_the_settings(
    pair: tuple[Path, Path],
) -> None:
    assert plan_of(pair, "lines").verdict == "the coefficient grows with depth from 0.5 to 1"
    plan = plan_of(pair, "lines", "overrides=[{layers: logit_scale, alpha: 0}]")
    assert plan.verdict == "the layers go 0 to 1 of the way from zero-shot to the fine-tuned model"


def test_a_reason_that_was_written_with_the_edit_stays(pair: tuple[Path, Path]) -> None:
    plan = plan_of(pair, "lines")
    name = "vision.0.mlp"
    changes = {"alpha": 0.9, "reason": "it did better in our runs"}
    layers = {**plan.layers, name: plan.layers[name].model_copy(update=changes)}
    checked = plan.model_copy(update={"layers": layers}).checked(dict.fromkeys(plan.layers, ()))
    assert checked.layers[name].reason == changes["reason"]


@pytest.mark.parametrize(
    ("layers", "weights", "combine", "sentence"),
    [
        (
            (0.5, 0.5),
            (1.0,),
            None,
            "every layer goes 0.5 of the way from zero-shot to the fine-tuned model",
        ),
        ((0.0, 0.0), (1.0,), None, "every layer stays zero-shot"),
        (
            (0.5, None),
            (1.0,),
            None,
            "the layers go 0 to 0.5 of the way .*, and 1 layer that the plan does not name stays",
        ),
        (
            (0.5, None, None),
            (1.0,),
            None,
            ", and 2 layers that the plan does not name stay zero-shot",
        ),
        ((0.5, 0.5), (0.5, 0.5), None, "to the average of 2 fine-tuned models"),
        ((0.5, 0.5), (0.2, 0.8), None, "to the sum of 2 fine-tuned changes weighted 0.2, 0.8"),
        ((0.5, 0.5), (2.0,), None, "to 2 times the fine-tuned change"),
        ((0.5, 0.5), (1.0, 1.0), "ties", "to the ties combination of 2 fine-tuned models"),
    ],
)
def test_settings_in_words(
    layers: tuple[Any, ...], weights: tuple[float, ...], combine: Any, sentence: str
) -> None:
    names = [f"vision.{place}.mlp" for place in range(len(layers))]
    known = {
        name: LayerPlan(alpha=alpha)
        for name, alpha in zip(names, layers, strict=True)
        if alpha is not None
    }
    rule = Combination(rule=combine) if combine else None
    assert re.search(sentence, verdict_on(known, names, weights, rule))


def test_learned_coefficients_and_masks_in_words() -> None:
    layers = {
        "vision.0.mlp": LayerPlan(alpha=0.4, alpha_range=(0.1, 0.9)),
        "vision.1.mlp": LayerPlan(alpha=0.4, mask="magnitude", density=0.2),
        "vision.2.mlp": LayerPlan(alpha=0.4, mask="n-m"),
    }
    verdict = verdict_on(layers, layers, (1.0,), None, finding="something was found")
    assert (
        verdict
        == "something was found; the coefficients go 0.1 to 0.9 of the way from zero-shot to the"
        " fine-tuned model; 2 of 3 layers have a mask (magnitude, n-m, density 0.2 to 1)"
    )
    del layers["vision.1.mlp"]
    assert verdict_on(layers, layers, (1.0,), None).endswith("; 1 of 2 layers has a mask (n-m)")
