"""A plan is read back unchanged, and an invalid edit is an error of one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipmerge.errors import UsageError
from clipmerge.planning.plan import (
    LayerPlan,
    Plan,
    SourceRecord,
)
from clipmerge.planning.recipe import Override
from tests.support.command import one_line
from tests.support.tasks import plan_of, plan_with

LAYERS = {"vision.1.mlp": ("a.weight", "a.bias"), "vision.10.mlp": ("b.weight",)}


def plan_dict() -> dict[str, Any]:
    layers = dict.fromkeys(LAYERS, LayerPlan(alpha=0.5))
    data: dict[str, Any] = json.loads(plan_with(layers).to_json())
    return data


FIRST = ("layers", "vision.1.mlp")
EDITS: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "unknown layer": (("layers", "vision.2.mlp"), {"alpha": 1}, r"names layer 'vision\.2\.mlp'.*Did you mean"),
    "unknown mask": ((*FIRST, "mask"), "magnitud", "layer 'vision.1.mlp': no mask 'magnitud'.*mean 'magnitude'"),
    "unknown option": ((*FIRST, "alhpa"), 1, "alhpa: Extra inputs.*Did you mean 'alpha'"),
    "no layers": (("layers",), {}, "names no layers, so it would merge nothing"),
    "tensors not kept": (("tensors",), {"file": None, "sha256": None}, "tensors .* were not kept; .* `clipmerge plan`"),
    "density without mask": ((*FIRST, "density"), 0.5, "has a density .* but no mask; name one"),
    "parameters without mask": ((*FIRST, "parameters"), {"a.weight": {}}, "or options of parameters, but no mask"),
    "option of a mask": (FIRST, {"alpha": 1, "mask": "n-m", "mask_options": {"n": 0}}, "mask n-m: option 'n' cannot be 0"),
    "density of another mask": (FIRST, {"alpha": 1, "mask": "n-m", "density": 0.5}, "density 0.5, which the mask 'n-m' does not have"),
    "unknown parameter": (FIRST, {"alpha": 1, "mask": "spectral", "parameters": {"a.weigth": {}}}, "'a.weigth', which it does not have.*mean 'a.weight'"),
    "density of a parameter": (FIRST, {"alpha": 1, "mask": "magnitude", "parameters": {"a.weight": {"density": 0.5}}}, "has its density beside"),
    "weights too many": (("weights",), [1, 2], "2 weights for 1 fine-tuned checkpoints"),
    "another format": (("format",), "clipmerge-plan/9", "is not a plan .*format: .*'clipmerge-plan/3'; make one with"),
    "measure a number": (("recipe", "measure"), 5, r"recipe\.measure: Input should be"),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_an_invalid_edit_is_refused(tmp_path: Path, what: str) -> None:
    keys, value, message = EDITS[what]
    data = target = plan_dict()
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))
    with one_line(UsageError, message):
        Plan.load(file).check(LAYERS, {})


def test_an_override_that_keeps_everything_leaves_a_layer_without_a_mask() -> None:
    split = LayerPlan(alpha=0.5, mask="spectral", parameters={"a.weight": {"rank": 2}})
    entry = split.with_override(Override(layers="*", density=1))
    assert entry == LayerPlan(alpha=0.5)
    plan_with(dict.fromkeys(LAYERS, entry)).check(LAYERS, {})


@pytest.mark.parametrize("text", ["{", "[]", "{}", "\xff"])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text, encoding="latin-1")
    with one_line(UsageError, r"plan\.json: is not a plan .*make one with `clipmerge plan`"):
        Plan.load(tmp_path / "plan.json")


def test_a_plan_holds_settings_and_reads_back(pair: tuple[Path, Path], tmp_path: Path) -> None:
    plan = plan_of(pair, "monosoup").save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert set(json.loads(plan.to_json())) == {
        *("format", "recipe", "zeroshot", "finetuned", "weights", "combine", "dtype", "missing"),
        *("head", "seed", "layers", "tensors", "stragglers"),
    }


def test_a_record_names_local_sources_by_their_last_part() -> None:
    hub = SourceRecord(source="org/clip@main", revision="1" * 40, files={})
    local = SourceRecord(source="/home/me/runs/clip", files={})
    assert (hub.public.source, local.public.source) == ("org/clip@main", "clip")


@pytest.mark.parametrize(("alpha", "warns"), [(0.0, False), (1.0, False), (1.2, True)])
def test_extrapolation_is_reported(alpha: float, warns: bool) -> None:
    plan = plan_with(
        {"vision.1.mlp": LayerPlan(alpha=alpha), "vision.10.mlp": LayerPlan(alpha=0.5)}
    )
    warned = "".join(plan.check(LAYERS, {}))
    assert (f"alpha {alpha} is outside [0, 1]" in warned) == warns
