"""Plans are decided, edited by hand and applied: what is written and said is the plan as it was
edited."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from clipmerge.api.merge import prepare, write_plan
from clipmerge.errors import OutputError
from clipmerge.finding import Finding
from clipmerge.methods import Task
from clipmerge.output.record import parse_record, read_output
from clipmerge.planning.plan import Plan
from clipmerge.planning.recipe import Override, load_recipe
from clipmerge.publish.card import model_card
from clipmerge.report.page import html_page
from clipmerge.report.text import headline
from clipmerge.request import Calibration, MergeRequest
from tests.support.claims import check_advice, check_combined, check_weights, words_of
from tests.support.command import clipmerge, done
from tests.support.merge_records import printed
from tests.support.tiny_clip import Folders

LOOSE = ["measure.nodes=2", "method.threshold=1", "method.mirror=0", "method.stability=0.3"]
#: One recipe of each kind of plan, with settings that make it quick: one alpha, by depth, learned
#: entries, masks of stragglers, learned masks, singular directions, several checkpoints.
RECIPES: dict[str, list[str]] = {
    "wise-ft": [],
    "lines": [],
    "auto": ["measure.steps=2"],
    "straggler-outlier": LOOSE,
    "straggler-sparse": ["measure.steps=2"],
    "monosoup": [],
    "ties": [],
}
#: Those that the fast tests run: seconds each.
FAST = ("wise-ft", "lines")
shares = st.sampled_from([0.0, 0.1, 0.5, 1.0])
overrides = st.builds(
    Override, layers=st.sampled_from(["text.*", "*.mlp", "logit_scale", "*"]), alpha=shares
)
#: The place of a layer, and what a hand does to it: another alpha, another mask, or out with it.
BY_HAND = [(3, 0.1), (12, "mask"), (16, "out")]
edits = st.lists(
    st.tuples(st.integers(0, 99), shares | st.sampled_from(["mask", "out"])), max_size=2
)
GIVEN = {
    "alpha": st.none() | shares,
    "overrides": st.lists(overrides, max_size=1),
    "edits": edits,
    "judged": st.booleans(),
    "swapped": st.booleans(),
}
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture
def places(pair: Folders, family: list[Path], images: Path, tmp_path: Path) -> tuple[Any, ...]:
    return pair, family, images, tmp_path


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[pytest.mark.slow, pytest.mark.uncounted] * (name not in FAST))
        for name in RECIPES
    ],
)
@settings(phases=[Phase.explicit], suppress_health_check=SLOW)
@example(
    alpha=None,
    overrides=[Override(layers="text.*", alpha=0.0)],
    edits=BY_HAND,
    judged=True,
    swapped=False,
)
@given(**GIVEN)
def test_what_is_written_is_what_the_plan_says(places: Any, method: str, **drawn: Any) -> None:
    check(places, method, **drawn)


@pytest.mark.nightly
@pytest.mark.uncounted
@settings(max_examples=10, suppress_health_check=SLOW)
@example(method="auto", alpha=0.5, overrides=[], edits=[], judged=True, swapped=True)
@example(method="ties", alpha=0.5, overrides=[], edits=[], judged=True, swapped=True)
@given(method=st.sampled_from([*RECIPES]), **GIVEN)
def test_so_it_is_for_any_edits(places: Any, method: str, **drawn: Any) -> None:
    check(places, method, **drawn)


def check(
    places: Any, method: str, alpha: Any, overrides: Any, edits: Any, *, judged: bool, swapped: bool
) -> None:
    pair, family, images, tmp_path = places
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    takes_alpha = alpha is not None and "alpha" in load_recipe(method).method
    sets = [*RECIPES[method], *([f"method.alpha={alpha!r}"] if takes_alpha else [])]
    recipe = load_recipe(method, sets).model_copy(update={"overrides": tuple(overrides)})
    calibration = Calibration(str(images), images=12, batch_size=12, device="cpu")
    zeroshot, *finetuned = map(str, family[:3] if method == "ties" else pair)
    request = MergeRequest(zeroshot, tuple(finetuned), recipe, calibration=calibration)
    run = prepare(request, with_verdict=judged)
    write_plan(run, tmp_path / "plan.json")
    edited = edit(tmp_path / "plan.json", edits, swapped=swapped)
    layers = Task(run.inputs).layers
    plan = Plan.load(tmp_path / "plan.json").without_stale().checked(layers)
    for name, entry in plan.layers.items():
        decided = run.light_plan.layers[name]
        if not swapped:
            is_edited = entry.model_copy(update={"reason": decided.reason}) != decided
            assert entry.reason == (Finding.of("edited") if is_edited else decided.reason)
    ended = done("apply", tmp_path / "plan.json", "--output", tmp_path / "out", "-v")
    record = read_output(tmp_path / "out")

    # the record holds the plan as it was edited, and the weights went as far
    for name in layers:
        wanted = edited["layers"].get(
            name, {"alpha": 0.0, "density": 1.0, "mask": None, "alpha_range": None}
        )
        written = record.layers[name].model_dump(mode="json")
        for key in ("alpha", "density", "mask", "alpha_range"):
            assert written[key] == wanted[key], (name, key)
    settings = {name: entry.model_dump() for name, entry in record.layers.items()}
    tensors = versions(run, layers, tmp_path, swapped=swapped)
    (check_combined if record.combine else check_weights)(settings, tensors, record)

    # so do the page, the card and the terminal, now and when the report is asked for again
    page = words_of((tmp_path / "out" / "report.html").read_text())
    card = (tmp_path / "out" / "README.md").read_text().replace("\\", "")
    again = clipmerge("report", tmp_path / "out", "-v").out
    for said in (page, " ".join(ended.out.split()), " ".join(again.split())):
        check_advice(said, record)
        assert headline(record) in said
    check_advice(card, record)
    for name, entry in record.layers.items():
        assert re.search(rf"\| {re.escape(name)} \| {entry.alpha:.4g}(?: \(|\s)", card), name
    changed = (
        not swapped
        and judged
        and Plan.load(tmp_path / "plan.json").settings_digest != run.light_plan.settings_digest
    )
    kinds = {warning.kind for warning in record.warnings}
    assert ("stale-effect" in kinds) == changed
    assert (record.effect is not None) == (judged and not changed and not swapped)
    assert ("other-checkpoints" in kinds) == swapped
    if swapped:  # nothing that was found for the pair in the other order
        assert not any(
            (record.measurements, record.stragglers, record.calibration, record.path, record.trace)
        )
        reasons = {entry.reason.kind for entry in record.layers.values()}
        assert reasons <= {"decided-for-others", "not-in-plan"}


@pytest.fixture(scope="module")
def told(pair: Folders, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a merge that measured, held back and looked for stragglers."""
    out = tmp_path_factory.mktemp("told") / "out"
    sets = ["--set", "measure.steps=2", "--images", 12, "--batch-size", 3]
    return done(
        "merge",
        *pair,
        "-r",
        "straggler-sparse",
        *sets,
        "--data",
        images,
        "-o",
        out,
        "--format",
        "json",
    ).json


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_an_old_record_is_shown_as_it_is_or_refused_in_a_line(
    told: dict[str, Any], data: st.DataObject
) -> None:
    """Records of earlier versions lack fields; whatever is left says the same as before, or that it
    is not known."""
    old = json.loads(json.dumps({**told, "clipmerge": "0.0.1", "seconds": {}}))
    drawn = st.sampled_from(
        ["", "", "", "effect", "calibration", "choice", "effect.merged", "effect.finetuned.0"]
    )
    for path in data.draw(st.lists(drawn, min_size=1, max_size=3), label="places"):
        part = old
        for step in filter(None, path.split(".")):
            part = part[int(step)] if isinstance(part, list) else part.get(step) or {}
        if part:
            del part[data.draw(st.sampled_from(sorted(part)), label=path)]
    try:
        record = parse_record(json.dumps(old), "clipmerge.json")
    except OutputError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert re.fullmatch(
            r"clipmerge\.json: (not a clipmerge record \(.+\)\. M|has the format .+, or m)erge"
            r" again\.?",
            refusal,
        )
        return
    page, card = words_of(html_page(record)), model_card(record, repo_id=None).replace("\\", "")
    long = " ".join(printed(old).split())
    for said in (page, card, long):
        check_advice(said, record)
    assert headline(record) in page
    if record.effect:
        assert record.effect.merged == parse_record(json.dumps(told), "told").effect.merged


def edit(file: Path, edits: list[tuple[int, Any]], *, swapped: bool) -> dict[str, Any]:
    """Edit the JSON of a plan as a hand would, and return it."""
    plan: dict[str, Any] = json.loads(file.read_text())
    for place, change in edits:
        name = list(plan["layers"])[place % len(plan["layers"])]
        if change == "out":
            del plan["layers"][name]
            continue
        plain = {"alpha_range": None, "parameters": {}}
        masked = {**plain, "mask": "magnitude", "density": 0.5, "mask_options": {}}
        plan["layers"][name] |= masked if change == "mask" else {**plain, "alpha": change}
    if swapped:
        plan |= {
            "zeroshot": plan["finetuned"][0],
            "finetuned": [plan["zeroshot"], *plan["finetuned"][1:]],
        }
    file.write_text(json.dumps(plan, indent=2))
    return plan


def versions(
    run: Any, layers: dict[str, tuple[str, ...]], folder: Path, *, swapped: bool
) -> dict[str, list[Any]]:
    """Zero-shot, fine-tuned and merged versions of each layer's tensors, in this order, read by
    another library."""
    inputs = run.inputs
    first, second, *rest = (Path(each.source) for each in (inputs.zeroshot, *inputs.finetuned))
    models = [second, first, *rest] if swapped else [first, second, *rest]
    states = [load_file(model / "model.safetensors") for model in (*models, folder / "out")]
    keys = inputs.zeroshot_keys
    return {
        layer: [tuple(state[keys[name]].double() for state in states) for name in names]
        for layer, names in layers.items()
    }
