"""The Hub double against huggingface_hub's own client calls."""

from __future__ import annotations

import os
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.support.hub_double import FakeHub, git_oid, upload

WEIGHTS = os.urandom(70_000)


@pytest.fixture
def api(hub: FakeHub) -> HfApi:
    return HfApi(endpoint=hub.url)


@pytest.fixture
def filled(hub: FakeHub) -> FakeHub:
    upload(hub, "alice/m", {"config.json": b'{"a": 1}', "w.bin": WEIGHTS, "sub/deep/x.txt": b"x"})
    return hub


def add(path: str, data: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, data)


def test_roles_namespaces_and_privacy(hub: FakeHub, api: HfApi) -> None:
    hub.read_only_tokens.add("hf_read")
    assert api.whoami(token="hf_read")["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_wrong")
    api.create_repo("alice/m", private=True)
    assert api.model_info("alice/m").private
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("alice/m")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("openai/m")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("alice/m", token=False)


def test_what_was_uploaded_comes_back_byte_for_byte(filled: FakeHub, api: HfApi) -> None:
    folder = Path(huggingface_hub.snapshot_download("alice/m", endpoint=filled.url))
    assert (folder / "w.bin").read_bytes() == WEIGHTS == filled.content("alice/m", "w.bin")
    assert (folder / "sub/deep/x.txt").read_bytes() == b"x"
    assert filled.files("alice/m")["config.json"].oid == git_oid(b'{"a": 1}')
    tree = {item.path: item for item in api.list_repo_tree("alice/m", recursive=True)}
    assert tree["w.bin"].lfs.size == len(WEIGHTS)
    assert set(tree) == {".gitattributes", "config.json", "w.bin", "sub", "sub/deep", "sub/deep/x.txt"}
    url = huggingface_hub.hf_hub_url("alice/m", "w.bin", endpoint=filled.url)
    answer = huggingface_hub.get_session().get(url, headers={"Range": "bytes=100-199"})
    assert (answer.status_code, answer.content) == (206, WEIGHTS[100:200])
    assert answer.headers["Content-Range"] == f"bytes 100-199/{len(WEIGHTS)}"


def test_commits_branches_and_pull_requests(filled: FakeHub, api: HfApi) -> None:
    head = api.model_info("alice/m").sha
    made = api.create_commit("alice/m", [add("a.txt", b"1")], commit_message="please", create_pr=True)
    assert made.pr_url == f"{filled.url}/alice/m/discussions/1"
    assert "a.txt" in filled.files("alice/m", "refs/pr/1")
    api.create_branch("alice/m", branch="dev")
    api.create_commit("alice/m", [add("a.txt", b"1")], commit_message="later", revision="dev")
    assert api.model_info("alice/m", revision="dev").sha != api.model_info("alice/m").sha == head
    with pytest.raises(RevisionNotFoundError):
        api.model_info("alice/m", revision="nowhere")
    api.create_commit("alice/m", [add("a.txt", b"1")], commit_message="one", parent_commit=head)
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("alice/m", [add("b.txt", b"2")], commit_message="two", parent_commit=head)
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.create_commit("alice/m", [add("README.md", b"---\na: [\n---\n")], commit_message="bad")


def test_faults_that_pass_and_an_answer_that_is_lost(filled: FakeHub, api: HfApi) -> None:
    fault = filled.fail("POST", "/preupload/", status=503, times=2)
    head = api.create_commit("alice/m", [add("a.txt", b"1")], commit_message="in the end").oid
    assert fault.times == 0
    assert [status for _, _, status in filled.requests("POST", "/preupload/")][-3:] == [503, 503, 200]
    filled.fail("GET", "/resolve/.*/w.bin", cut_response=1000)  # which the client resumes
    path = huggingface_hub.hf_hub_download("alice/m", "w.bin", endpoint=filled.url)
    assert Path(path).read_bytes() == WEIGHTS
    filled.fail("POST", "/commit/main", lose_answer=True)
    with pytest.raises(Exception, match="disconnected"):
        api.create_commit("alice/m", [add("b.txt", b"1")], commit_message="lost", parent_commit=head)
    assert "b.txt" in filled.files("alice/m")


def test_xet_upload_and_download(hub: FakeHub, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.xet_cas = f"local://{tmp_path / 'cas'}"
    upload(hub, "alice/m", {"w.bin": WEIGHTS})
    assert hub.files("alice/m")["w.bin"].xet
    path = huggingface_hub.hf_hub_download("alice/m", "w.bin", endpoint=hub.url)
    assert Path(path).read_bytes() == WEIGHTS


def test_a_client_that_gave_up_is_not_complained_about(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    """Its answer comes when the next command may be writing to stderr already."""
    for error, said in ((BrokenPipeError(), False), (ValueError("a fault of the double"), True)):
        try:
            raise error
        except (OSError, ValueError):
            hub.server.handle_error(None, ("127.0.0.1", 1))
        assert bool(capsys.readouterr().err) is said
