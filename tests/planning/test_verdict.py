"""The words of a verdict; that it never contradicts its plan is tested in `tests/api/test_no_contradiction.py`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from clipmerge.api.plan import prepare
from clipmerge.planning.layer_plan import Combination, LayerPlan
from clipmerge.planning.recipe import load_recipe
from clipmerge.planning.verdict import verdict_on
from clipmerge.request import MergeRequest


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
