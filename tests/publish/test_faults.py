"""Faults of publishing that are temporary, lose an answer or are caused by somebody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from clipmerge.errors import HubError
from clipmerge.publish.push import connect, push
from clipmerge.publish.repository import Push, find_repository
from tests.support.hub_double import FakeHub


def commits(hub: FakeHub) -> int:
    return len([entry for entry in hub.requests("POST", "/commit/") if entry[2] == 200])


def test_no_token(hub: FakeHub, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    told = r"push to alice/robust: no token. Nothing was published.*`clipmerge push .*merged alice/robust`"
    with pytest.raises(HubError, match=told):
        push(merged, "alice/robust", endpoint=hub.url)


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        ("hf_read", "alice/robust", "the token may only read. Nothing was published"),
        ("hf_wrong", "alice/robust", "no token, or one that is not valid .*Nothing was published"),
        ("hf_test", "openai/robust", "may write to alice, acme, not to openai.*Push to alice/robust"),
    ],
)
def test_a_token_without_the_right(
    hub: FakeHub, merged: Path, monkeypatch: pytest.MonkeyPatch, token: str, repo_id: str, message: str
) -> None:
    hub.read_only_tokens.add("hf_read")
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=message) as caught:
        push(merged, repo_id, endpoint=hub.url)
    assert token not in str(caught.value)
    assert not hub.requests("POST", "/api/repos/create")


WHERE = {
    "whoami": ("GET", "/api/whoami-v2"),
    "info": ("GET", "/api/models/alice/robust$"),
    "tree": ("GET", "/tree/"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/objects/batch"),
    "put": ("PUT", "/_lfs/"),
    "verify": ("POST", "/_lfs/verify"),
}


@pytest.mark.parametrize("where", ["whoami", "info", "tree", "preupload", "batch", "put", "verify"])
@pytest.mark.parametrize("fault", [{"status": 503}, {"cut_after": 0}])
def test_a_passing_fault_is_sat_out(hub: FakeHub, merged: Path, where: str, fault: dict[str, Any]) -> None:
    passing = hub.fail(*WHERE[where], times=1, **fault)
    assert push(merged, "alice/robust", endpoint=hub.url).changed
    assert passing.times == 0
    assert commits(hub) == 1


def test_a_commit_whose_answer_is_lost_counts_as_published(hub: FakeHub, merged: Path) -> None:
    hub.fail("POST", "/commit/", lose_answer=True)
    done = push(merged, "alice/robust", endpoint=hub.url)
    assert done.changed
    assert done.commit == hub.repos["model", "alice/robust"].refs["refs/heads/main"]
    assert not push(merged, "alice/robust", endpoint=hub.url).changed


def test_a_hub_that_goes_down_in_the_commit_is_not_guessed_about(hub: FakeHub, merged: Path) -> None:
    push(merged, "alice/robust", endpoint=hub.url)
    (merged / "NOTICE").write_text("new")
    hub.fail("POST", "/commit/", lose_answer=True)
    hub.fail("GET", "/api/models/alice/robust$", status=0, times=2)
    hub.fail("GET", "/api/models/alice/robust$", status=503, times=99)
    with pytest.raises(HubError, match="Whether the files were published is not known"):
        push(merged, "alice/robust", endpoint=hub.url)


def test_a_pull_request_whose_answer_is_lost(hub: FakeHub, merged: Path) -> None:
    push(merged, "alice/robust", endpoint=hub.url)
    (merged / "NOTICE").write_text("new")
    hub.fail("POST", "/commit/", lose_answer=True)
    with pytest.raises(HubError, match=r"A pull request may have been opened: look at http.*/discussions"):
        push(merged, "alice/robust", create_pr=True, endpoint=hub.url)


def test_somebody_else_commits_meanwhile(hub: FakeHub, merged: Path) -> None:
    push(merged, "alice/robust", endpoint=hub.url)
    (merged / "NOTICE").write_text("mine")

    def commit_theirs() -> None:
        tree = hub.files("alice/robust") | {"theirs.txt": hub.keep(b"theirs")}
        hub.repos["model", "alice/robust"].add_commit("refs/heads/main", tree, "theirs")

    hub.fail("POST", "/preupload/", status=0, then=commit_theirs)
    with pytest.raises(HubError, match=r"somebody else committed meanwhile.*Nothing was published"):
        push(merged, "alice/robust", endpoint=hub.url)
    assert hub.content("alice/robust", "theirs.txt") == b"theirs"
    assert "NOTICE" not in hub.files("alice/robust")
    assert push(merged, "alice/robust", endpoint=hub.url).changed


def test_a_refused_connection(hub: FakeHub, merged: Path) -> None:
    hub.stop()
    with pytest.raises(HubError, match=r"the Hub cannot be reached. Nothing was published"):
        push(merged, "alice/robust", endpoint=hub.url)


def test_offline_is_not_the_time_to_publish(hub: FakeHub, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set. Nothing was published"):
        push(merged, "alice/robust", endpoint=hub.url)


def test_a_repository_that_a_visitor_may_not_see_is_not_taken_for_a_new_one(
    hub: FakeHub, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client calls either answer a missing repository: 404, and 401 as when a token has just been revoked."""
    api = connect(hub.url)
    asked = Push(merged, "alice/robust", private=False, endpoint=hub.url)
    assert find_repository(api, asked) is None
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"not on the Hub, or private\. Nothing was published.*set HF_TOKEN"):
        find_repository(api, asked)
