"""The verdict: for any overrides and edits of a plan, it makes no false statement."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipmerge.api.plan import Known, prepare
from clipmerge.methods import Task
from clipmerge.planning.layer_plan import Combination, LayerPlan
from clipmerge.planning.plan import EDITED, Plan, read_plan
from clipmerge.planning.recipe import Override, load_recipe
from clipmerge.planning.verdict import verdict_on
from clipmerge.request import Calibration, MergeRequest
from tests.support.claims import check_verdict

FREE = ("wise-ft", "lines", "monosoup")
#: Recipes by name, with settings that make them quick.
MEASURED = {"wise-ft-id": [], "auto": ["measure.steps=2"], "straggler-sparse": ["measure.steps=2"]}
STRAGGLERS = ("straggler-outlier", "straggler-shrink", "random-matched")
LOOSE = ["method.threshold=1", "method.mirror=0", "method.stability=0.3", "method.bootstraps=20"]


@pytest.fixture(scope="module")
def known() -> Known:
    """Shared by all merges of this file, which differ only in the recipe: each measure runs once."""
    return Known()


shares = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5])
overrides = st.builds(
    Override,
    layers=st.sampled_from(["text.*", "vision.1.*", "*.mlp", "logit_scale", "*"]),
    alpha=st.none() | shares,
    density=st.none() | st.sampled_from([0.5, 1.0]),
)
edits = st.lists(st.tuples(st.integers(0, 99), st.none() | shares | st.just("mask")), max_size=3)


@pytest.mark.uncounted
@pytest.mark.parametrize(
    "method",
    [
        *FREE,
        *MEASURED,
        *(pytest.param(name, marks=() if name == "straggler-outlier" else pytest.mark.slow) for name in STRAGGLERS),
    ],
)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    overrides=st.lists(overrides, max_size=2).map(tuple),
    edits=edits,
    again=st.booleans(),
)
def test_no_verdict_contradicts_its_plan(
    pair: tuple[Path, Path],
    images: Path,
    known: Known,
    tmp_path: Path,
    method: str,
    overrides: tuple[Override, ...],
    edits: list[tuple[int, Any]],
    again: bool,
) -> None:
    recipe = load_recipe(method, MEASURED.get(method, LOOSE if method in STRAGGLERS else []))
    if method == "monosoup":  # its mask has no density
        overrides = tuple(each.model_copy(update={"density": None}) for each in overrides)
    recipe = recipe.model_copy(update={"overrides": overrides})
    calibration = Calibration(str(images), images=12, batch_size=3, device="cpu")
    request = MergeRequest(str(pair[0]), (str(pair[1]),), recipe, calibration if recipe.needs_data else Calibration())
    run = prepare(request, known=known)
    assert run.plan is not None
    layers = Task(run.inputs).layers
    check_verdict(run.plan, layers)
    file = tmp_path / "plan.json"
    file.write_text(edited(run.plan, edits).to_json())
    plan = read_plan(file).checked(layers)
    check_verdict(plan, layers)
    for name, entry in plan.layers.items():
        edited_settings = entry.model_copy(update={"reason": ""}) != run.plan.layers[name].model_copy(
            update={"reason": ""}
        )
        assert entry.reason == (EDITED if edited_settings else run.plan.layers[name].reason)
    if again:  # an edited plan that is written and read once more
        file.write_text(plan.to_json())
        assert read_plan(file).checked(layers).verdict == plan.verdict
    if not edits:
        assert plan.verdict == run.plan.verdict


def edited(plan: Plan, edits: list[tuple[int, Any]]) -> Plan:
    """Edit single layers as a hand would: another alpha, a mask, or the layer taken out."""
    layers = dict(plan.layers)
    for place, change in edits:
        name = list(layers)[place % len(layers)]
        if change is None and len(layers) > 1:
            del layers[name]
        elif change == "mask":
            plain = {"mask": "magnitude", "density": 0.5, "alpha_range": None, "mask_options": {}, "parameters": {}}
            layers[name] = layers[name].model_copy(update=plain)
        elif change is not None:
            layers[name] = layers[name].model_copy(update={"alpha": change, "alpha_range": None})
    return plan.model_copy(update={"layers": layers})


def test_a_method_keeps_its_own_words_while_nothing_changes_the_settings(pair: tuple[Path, Path]) -> None:
    request = MergeRequest(str(pair[0]), (str(pair[1]),), load_recipe("lines"))
    plan = prepare(request).plan
    assert plan is not None
    assert plan.verdict == "the coefficient grows with depth from 0.5 to 1"
    recipe = load_recipe("lines", ["overrides=[{layers: logit_scale, alpha: 0}]"])
    plan = prepare(MergeRequest(str(pair[0]), (str(pair[1]),), recipe)).plan
    assert plan is not None
    assert plan.verdict == "the layers go 0 to 1 of the way from zero-shot to the fine-tuned model"


def test_a_reason_that_was_written_with_the_edit_stays(pair: tuple[Path, Path]) -> None:
    plan = prepare(MergeRequest(str(pair[0]), (str(pair[1]),), load_recipe("lines"))).plan
    assert plan is not None
    name = "vision.0.mlp"
    changes = {"alpha": 0.9, "reason": "it did better in our runs"}
    layers = {**plan.layers, name: plan.layers[name].model_copy(update=changes)}
    checked = plan.model_copy(update={"layers": layers}).checked(dict.fromkeys(plan.layers, ()))
    assert checked.layers[name].reason == changes["reason"]


def entry(alpha: float, **more: Any) -> LayerPlan:
    return LayerPlan(alpha=alpha, **more)


@pytest.mark.parametrize(
    ("layers", "weights", "combine", "sentence"),
    [
        ((0.5, 0.5), (1.0,), None, "every layer goes 0.5 of the way from zero-shot to the fine-tuned model"),
        ((0.0, 0.0), (1.0,), None, "every layer stays zero-shot"),
        ((0.5, None), (1.0,), None, "the layers go 0 to 0.5 of the way .*, and 1 of them .* stay zero-shot"),
        ((0.5, 0.5), (0.5, 0.5), None, "to the average of 2 fine-tuned models"),
        ((0.5, 0.5), (0.2, 0.8), None, "to the sum of 2 fine-tuned changes weighted 0.2, 0.8"),
        ((0.5, 0.5), (2.0,), None, "to 2 times the fine-tuned change"),
        ((0.5, 0.5), (1.0, 1.0), "ties", "to the ties combination of 2 fine-tuned models"),
    ],
)
def test_settings_in_words(layers: tuple[Any, ...], weights: tuple[float, ...], combine: Any, sentence: str) -> None:
    names = [f"vision.{place}.mlp" for place in range(len(layers))]
    known = {name: entry(alpha) for name, alpha in zip(names, layers, strict=True) if alpha is not None}
    rule = Combination(rule=combine) if combine else None
    assert re.search(sentence, verdict_on(known, names, weights, rule))


def test_learned_coefficients_and_masks_in_words() -> None:
    layers = {
        "vision.0.mlp": entry(0.4, alpha_range=(0.1, 0.9)),
        "vision.1.mlp": entry(0.4, mask="magnitude", density=0.2),
        "vision.2.mlp": entry(0.4, mask="n-m"),
    }
    verdict = verdict_on(layers, layers, (1.0,), None, finding="something was found")
    assert verdict == (
        "something was found; the coefficients go 0.1 to 0.9 of the way from zero-shot to the fine-tuned model; "
        "2 of 3 layers have a mask (magnitude, n-m, density 0.2 to 1)"
    )
