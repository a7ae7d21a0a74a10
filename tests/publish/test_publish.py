"""A push publishes the files of the merge and nothing else."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from clipmerge.errors import HubError, OutputError, UsageError
from clipmerge.publish.push import push
from tests.support.command import one_line
from tests.support.published import Published, publishing
from tests.support.told import Told


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Published]:
    return publishing(monkeypatch)


def test_a_push_publishes_the_files_of_the_merge(merged: Path, hub: type[Published]) -> None:
    (merged / "notes.txt").write_text("mine")
    published = push(merged, "alice/robust")
    assert published.url.endswith("/alice/robust")
    files = dict(hub.models["alice/robust"])
    names = ["README.md", "clipmerge.json", "config.json", "model.safetensors", "report.html"]
    assert sorted(files) == [".gitattributes", *names]
    card = files["README.md"].decode()
    assert "# robust" in card
    assert 'from_pretrained("alice/robust")' in card
    hub.models["alice/robust"]["model-00001-of-00002.safetensors"] = b"of an earlier merge"
    (merged / "README.md").write_text("my own words")
    push(merged, "alice/robust")
    assert hub.models["alice/robust"] == files | {"README.md": b"my own words"}


def test_another_verdict_than_use_is_a_warning(merged: Path, hub: type[Published]) -> None:
    told = Told()
    push(merged, "alice/first", progress=told)
    assert told.lines == []
    data = json.loads((merged / "clipmerge.json").read_text())
    data["verdict"] |= {"recommendation": "keep-finetuned", "sentence": "Keep the fine-tuned."}
    (merged / "clipmerge.json").write_text(json.dumps(data))
    push(merged, "alice/second", progress=told)
    assert told.lines == ["the verdict on this merge is: Keep the fine-tuned."]


def test_a_push_that_would_do_harm_is_refused(merged: Path, hub: type[Published]) -> None:
    hub.models["alice/other"] = {"model.safetensors": b"theirs"}
    with one_line(UsageError, "exists and holds something else"):
        push(merged, "alice/other")
    for name in ("robust", "a/b/c", "/x", "a/"):
        with one_line(UsageError, "write it as ORG/NAME"):
            push(merged, name)
    with (merged / "model.safetensors").open("ab") as file:
        file.write(b" ")
    with one_line(OutputError, r"model\.safetensors changed since the merge"):
        push(merged, "alice/robust")
    assert hub.models == {"alice/other": {"model.safetensors": b"theirs"}}


@pytest.mark.parametrize(
    ("error", "next_step"),
    [
        (LocalTokenNotFoundError("no token"), "hf auth login"),
        (HfHubHTTPError("403 Client Error\n\nno", response=Mock(status_code=403)), "auth login"),
        (HfHubHTTPError("409", response=Mock(status_code=409)), "Try again later"),
    ],
)
def test_a_refusal_is_one_line_with_the_next_step(
    merged: Path, hub: type[Published], error: Exception, next_step: str
) -> None:
    hub.error = error
    with one_line(HubError, f"push to alice/robust: .*{next_step}"):
        push(merged, "alice/robust")
