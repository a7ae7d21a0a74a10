"""Records and plans of the format before, written by that version, are still read."""

import json
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

import clipmerge
from clipmerge.output.record import parse_record
from clipmerge.planning.measurements import StatisticAbout
from clipmerge.planning.plan import Plan
from clipmerge.publish.card import model_card
from clipmerge.report.text import headline, record_text
from tests.support.merge_records import printed
from tests.support.tiny_clip import save_pair

EARLIER = Path(__file__).parent / "earlier"


def test_a_record_of_the_format_before_keeps_its_numbers_and_sentences() -> None:
    text = (EARLIER / "record-2.json").read_text()
    old, record = json.loads(text), parse_record(text, "clipmerge.json")
    assert record.effect is not None
    assert record.choice is not None
    assert record.effect.merged.clean.value == old["bought"]["merged"]["clean"]["value"]
    assert record.other_tasks[0].name == old["kept"][0]["name"] == "other"
    assert record.choice.accuracy == old["choice"]["right"]
    assert record.choice.extrapolation == old["choice"]["beyond"]
    assert record.trace["cross_entropy"] == tuple(old["trace"]["calibration"])
    assert record.seconds["effect"] == old["seconds"]["bought"]
    said = " ".join(printed(json.loads(record_text(record))).split())
    card = model_card(record, repo_id=None).replace("\\", "")
    for sentence in (old["bought"]["reason"], *old["warnings"]):
        assert sentence.replace("your images", "the target images") in card
    assert old["bought"]["reason"] in said
    assert "Too few images to tell. On 5 held-out images the merged model is 60.0% acc" in said
    assert record.layers["vision.0.mlp"].reason.values["text"] == "learned"
    assert headline(record).startswith("62,081 learned coefficients; loss from 0.848")


def test_a_plan_of_the_format_before_is_applied_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pair(tmp_path)
    shutil.copy(EARLIER / "plan-1.json", tmp_path / "plan.json")
    monkeypatch.chdir(tmp_path)
    plan = Plan.load("plan.json")
    assert plan.effect is not None
    assert plan.without_stale().effect == plan.effect  # its digest is still the same
    applied = clipmerge.apply("plan.json", output="applied")
    merged = clipmerge.merge("zeroshot", "finetuned", "wise-ft", output="merged")
    first, second = (load_file(each.path / "model.safetensors") for each in (applied, merged))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_statistics_of_earlier_records_are_read_and_no_other_unknown_fields() -> None:
    former = {"signed": True, "unit": "nats", "additive": True, "symbol": "B_l"}
    assert StatisticAbout.model_validate(former).unit == "nats"
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        StatisticAbout.model_validate(former | {"colour": "red"})
