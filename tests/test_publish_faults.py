"""Every fault of publishing, by the real client: one line, the truth about what stands, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from clipmerge import hub as hub_module
from clipmerge.errors import HubError
from clipmerge.publish import push
from tests.hub_double import FakeHub, serving
from tests.merged_output import save_output


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(hub_module, "_WAITS", (0.0, 0.0))
    with serving(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def merged(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    return save_output(pair[1], tmp_path / "merged")


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


NEW, OLD = "was created and is empty: no file was published", "Nothing was published"
WHERE = {
    "whoami": ("GET", "/api/whoami-v2"),
    "create": ("POST", "/api/repos/create"),
    "info": ("GET", "/api/models/alice/robust$"),
    "tree": ("GET", "/tree/"),
    "yaml": ("POST", "/api/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/objects/batch"),
    "put": ("PUT", "/_lfs/"),
    "verify": ("POST", "/_lfs/verify"),
    "commit": ("POST", "/commit/"),
}
LASTING: list[tuple[str, dict[str, Any], str]] = [
    ("whoami", {"status": 401}, f"not valid.*{OLD}"),
    ("whoami", {"status": 503}, f"the Hub failed .HTTP 503.*{OLD}"),
    ("whoami", {"cut_after": 0}, f"the connection broke.*{OLD}"),
    ("info", {"status": 401}, f"not valid|or private.*{OLD}"),
    ("info", {"status": 403}, f"no right.*{OLD}"),
    ("info", {"status": 500}, f"the Hub failed .HTTP 500.*{OLD}"),
    ("info", {"status": 429}, f"too many requests.*{OLD}"),
    ("create", {"status": 401}, f"not valid.*{OLD}. If the repository was created, it is empty"),
    ("create", {"status": 403}, f"no right.*{OLD}"),
    ("create", {"status": 400}, f"the Hub refused .HTTP 400.*{OLD}"),
    ("create", {"status": 500}, f"the Hub failed.*{OLD}"),
    ("create", {"cut_after": 10}, f"the connection broke.*{OLD}"),
    ("create", {"status": 0, "delay": 1.0}, f"no answer in time.*{OLD}"),
    ("tree", {"status": 503}, f"the Hub failed.*{NEW}"),
    ("yaml", {"status": 400, "body": {"errors": [{"message": "bad"}]}}, f"Invalid metadata in README.*{NEW}"),
    ("yaml", {"status": 500}, f"the Hub failed.*{NEW}"),
    ("preupload", {"status": 401}, f"not valid.*{NEW}"),
    ("preupload", {"status": 403}, f"no right.*{NEW}"),
    ("preupload", {"status": 500}, f"the Hub failed.*{NEW}"),
    ("preupload", {"status": 404, "headers": {"X-Error-Code": "RepoNotFound"}}, f"not on the Hub.*{NEW}"),
    ("batch", {"status": 502}, f"the Hub failed.*{NEW}"),
    ("batch", {"status": 0, "delay": 1.0}, f"no answer in time.*{NEW}"),
    ("put", {"status": 403}, f"no right.*{NEW}"),
    ("put", {"status": 500}, f"the Hub failed.*{NEW}"),
    ("put", {"cut_after": 1000}, f"the connection broke.*{NEW}"),
    ("put", {"status": 0, "delay": 1.0}, f"no answer in time.*{NEW}"),
    ("verify", {"status": 404}, f"does not know it.*{NEW}"),
    ("commit", {"status": 401}, f"not valid.*{NEW}"),
    ("commit", {"status": 403}, f"no right.*{NEW}"),
    ("commit", {"status": 409}, f"the name is taken.*{NEW}"),
    ("commit", {"status": 412}, f"somebody else committed meanwhile.*{NEW}"),
    ("commit", {"status": 413, "body": "<html>"}, f"the Hub refused .HTTP 413.*{NEW}"),
    ("commit", {"status": 500}, f"the Hub failed .HTTP 500.*{NEW}"),
    ("commit", {"status": 504}, f"the Hub failed .HTTP 504.*{NEW}"),
    ("commit", {"cut_after": 100}, f"the connection broke.*{NEW}"),
    ("commit", {"status": 0, "delay": 1.0}, f"no answer in time.*{NEW}"),
]


@pytest.mark.parametrize(("where", "fault", "message"), LASTING)
def test_a_lasting_fault_says_what_stands_and_how_to_go_on(
    hub: FakeHub,
    merged: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    fault: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setenv("CLIPMERGE_HUB_TIMEOUT", "0.3")
    hub.fail(*WHERE[where], times=99, **fault)
    with pytest.raises(HubError, match=f"^push to alice/robust: .*{message}") as caught:
        push(merged, "alice/robust", endpoint=hub.url)
    line = str(caught.value)
    assert "\n" not in line
    assert line.endswith(f"Go on with `clipmerge push {merged} alice/robust`.")
    if fault.get("status") != 0:  # the double's own work goes on after the client stopped waiting
        assert commits(hub) == 0
    hub.faults.clear()
    monkeypatch.delenv("CLIPMERGE_HUB_TIMEOUT")
    push(merged, "alice/robust", endpoint=hub.url)
    assert commits(hub) == 1


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
    (merged / "notes.txt").write_text("new")
    hub.fail("POST", "/commit/", lose_answer=True)
    hub.fail("GET", "/api/models/alice/robust$", status=0, times=2)
    hub.fail("GET", "/api/models/alice/robust$", status=503, times=99)
    with pytest.raises(HubError, match="Whether the files were published is not known"):
        push(merged, "alice/robust", endpoint=hub.url)


def test_a_pull_request_whose_answer_is_lost(hub: FakeHub, merged: Path) -> None:
    push(merged, "alice/robust", endpoint=hub.url)
    (merged / "notes.txt").write_text("new")
    hub.fail("POST", "/commit/", lose_answer=True)
    with pytest.raises(HubError, match=r"A pull request may have been opened: look at http.*/discussions"):
        push(merged, "alice/robust", create_pr=True, endpoint=hub.url)


def test_somebody_else_commits_meanwhile(hub: FakeHub, merged: Path) -> None:
    push(merged, "alice/robust", endpoint=hub.url)
    (merged / "notes.txt").write_text("mine")

    def commit_theirs() -> None:
        tree = hub.files("alice/robust") | {"theirs.txt": hub.keep(b"theirs")}
        hub.repos["model", "alice/robust"].add_commit("refs/heads/main", tree, "theirs")

    hub.fail("POST", "/preupload/", status=0, then=commit_theirs)
    with pytest.raises(HubError, match=r"somebody else committed meanwhile.*Nothing was published"):
        push(merged, "alice/robust", endpoint=hub.url)
    assert hub.content("alice/robust", "theirs.txt") == b"theirs"
    assert "notes.txt" not in hub.files("alice/robust")
    assert push(merged, "alice/robust", endpoint=hub.url).changed


def test_a_refused_connection(hub: FakeHub, merged: Path) -> None:
    hub.stop()
    with pytest.raises(HubError, match=r"the Hub cannot be reached. Nothing was published"):
        push(merged, "alice/robust", endpoint=hub.url)


def test_offline_is_not_the_time_to_publish(hub: FakeHub, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set. Nothing was published"):
        push(merged, "alice/robust", endpoint=hub.url)
