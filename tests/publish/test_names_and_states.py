"""Targets that a push refuses by name, files that changed, and repositories in an odd state."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipmerge.errors import HubError, OutputError, UsageError
from clipmerge.publish.push import push
from tests.support.hub_double import FakeHub, upload

NO_TOKEN = {"status": 401, "headers": {"X-Error-Code": "RepoNotFound"}}


def test_a_pull_request_names_no_branch(hub: FakeHub, merged: Path) -> None:
    with pytest.raises(UsageError, match=r"--create-pr opens a pull request on main: leave --revision out"):
        push(merged, "alice/robust", create_pr=True, revision="dev", endpoint=hub.url)
    assert not hub.log


def test_a_file_that_changed_since_the_merge_is_not_published(hub: FakeHub, merged: Path) -> None:
    weights = bytearray((merged / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (merged / "model.safetensors").write_bytes(weights)
    with pytest.raises(
        OutputError, match=r"model\.safetensors changed since the merge\. Nothing was published\. Merge again"
    ):
        push(merged, "alice/robust", endpoint=hub.url)


def test_a_record_that_cannot_be_read_counts_as_none(hub: FakeHub, merged: Path) -> None:
    """What lies there was not left by an earlier push, so it is not overwritten as one."""
    upload(hub, "alice/robust", {"clipmerge.json": b"{"})
    assert push(merged, "alice/robust", endpoint=hub.url).changed


@pytest.mark.parametrize("name", ["clipmerge.json", "README.md"])
def test_a_text_that_is_too_large_is_not_read(
    hub: FakeHub, merged: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipmerge.publish.repository.LARGEST_TEXT", 1000)
    upload(hub, "alice/robust", {name: b"---\nlicense: mit\n---\n" + b" " * 1001})
    with pytest.raises((HubError, UsageError), match=rf"{name} there cannot be read .*Nothing was published"):
        push(merged, "alice/robust", endpoint=hub.url)


def test_a_new_branch_may_exist_after_a_failed_upload(hub: FakeHub, merged: Path) -> None:
    upload(hub, "alice/robust", {})
    hub.fail("POST", "/commit/", times=99, status=403)
    with pytest.raises(HubError, match=r"The branch dev may have been created from main"):
        push(merged, "alice/robust", revision="dev", endpoint=hub.url)
    hub.faults.clear()
    assert push(merged, "alice/robust", revision="dev", endpoint=hub.url).changed


def test_a_token_that_the_hub_rejects_is_not_a_missing_repository(hub: FakeHub, merged: Path) -> None:
    hub.fail("GET", "/api/models/alice/robust$", times=99, status=401)
    with pytest.raises(HubError, match=r"no token, or one that is not valid.*Nothing was published"):
        push(merged, "alice/robust", endpoint=hub.url)
