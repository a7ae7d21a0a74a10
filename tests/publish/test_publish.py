"""The push, to a Hub in this process."""

import json
from pathlib import Path

import pytest

import clipmerge
from clipmerge.errors import HubError, OutputError, UsageError
from clipmerge.publish.push import push
from tests.support.hub_double import FakeHub, upload
from tests.support.told import Told


def test_a_push_publishes_the_files_of_the_merge_in_one_commit(merged: Path, hub: FakeHub) -> None:
    (merged / "notes.txt").write_text("mine")
    published = push(merged, "alice/robust")
    files = hub.files("alice/robust")
    assert {"model.safetensors", "config.json", "README.md", "report.html"} <= set(files)
    assert "notes.txt" not in files
    card = hub.files("alice/robust")["README.md"].decode()
    assert "# robust" in card
    assert 'from_pretrained("alice/robust")' in card
    assert published.url.endswith("/alice/robust")
    assert (
        json.loads(hub.files("alice/robust")["clipmerge.json"])["plan"]["recipe"]["name"]
        == "straggler-outlier"
    )
    upload(hub, "alice/robust", {"model-00001-of-00002.safetensors": b"of an earlier merge"})
    assert push(merged, "alice/robust").url == published.url
    assert hub.files("alice/robust").keys() == files.keys()


def test_an_edited_card_is_published_as_it_is(merged: Path, hub: FakeHub) -> None:
    card = (merged / "README.md").read_text().replace("# A merged CLIP", "# My own words")
    (merged / "README.md").write_text(card)
    push(merged, "alice/robust")
    assert hub.files("alice/robust")["README.md"].decode() == card


def test_another_answer_than_use_is_said(merged: Path, hub: FakeHub) -> None:
    told = Told()
    push(merged, "alice/first", progress=told)
    assert told.lines == []
    data = json.loads((merged / "clipmerge.json").read_text())
    data["verdict"] |= {"recommendation": "keep-finetuned", "sentence": "Keep the fine-tuned."}
    (merged / "clipmerge.json").write_text(json.dumps(data))
    push(merged, "alice/second", progress=told)
    (line,) = told.lines
    assert "Keep the fine-tuned." in line


def test_weights_that_changed_are_not_published(merged: Path, hub: FakeHub) -> None:
    with (merged / "model.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(OutputError, match=r"model\.safetensors changed since the merge"):
        push(merged, "alice/robust")


def test_another_model_is_not_overwritten(merged: Path, hub: FakeHub, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"theirs")
    upload(hub, "alice/other", other)
    with pytest.raises(UsageError, match="exists and holds something else"):
        push(merged, "alice/other")


@pytest.mark.parametrize("name", ["robust", "a/b/c", "/x", "a/"])
def test_a_name_that_is_none_is_refused(merged: Path, name: str) -> None:
    with pytest.raises(UsageError, match="write it as ORG/NAME"):
        clipmerge.push(merged, name)


@pytest.mark.parametrize(
    ("status", "told"), [(401, "hf auth login"), (403, "hf auth login"), (409, "tries again")]
)
def test_a_refusal_is_one_line_with_what_to_do(
    merged: Path, hub: FakeHub, status: int, told: str
) -> None:
    hub.fail("POST", "/api/repos/create", status=status)
    with pytest.raises(HubError, match=told) as caught:
        push(merged, "alice/robust")
    assert "\n" not in str(caught.value)
