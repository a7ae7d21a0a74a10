"""The Hub double against huggingface_hub's own client calls."""

from __future__ import annotations

import os
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
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


def test_whoami_tells_the_role_of_the_token(hub: FakeHub, api: HfApi) -> None:
    hub.read_only_tokens.add("hf_read")
    assert api.whoami()["name"] == "alice"
    assert api.whoami(token="hf_read")["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_wrong")


def test_create_repo_twice_and_in_a_foreign_namespace(api: HfApi) -> None:
    api.create_repo("alice/m", private=True)
    assert api.model_info("alice/m").private
    api.create_repo("alice/m", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("alice/m")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("openai/m")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("alice/m", token=False)


def test_an_uploaded_folder_comes_back_byte_for_byte(filled: FakeHub, tmp_path: Path) -> None:
    folder = Path(huggingface_hub.snapshot_download("alice/m", endpoint=filled.url))
    assert (folder / "w.bin").read_bytes() == WEIGHTS
    assert (folder / "sub/deep/x.txt").read_bytes() == b"x"
    assert filled.content("alice/m", "w.bin") == WEIGHTS
    assert filled.files("alice/m")["config.json"].oid == git_oid(b'{"a": 1}')


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_upload_folder_makes_one_commit(api: HfApi, hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.safetensors").write_bytes(WEIGHTS)
    api.create_repo("acme/m")
    api.upload_folder(repo_id="acme/m", folder_path=tmp_path / "out")
    assert len(hub.requests("POST", "/commit/")) == 1
    assert hub.content("acme/m", "model.safetensors") == WEIGHTS


def test_a_stale_parent_is_refused(filled: FakeHub, api: HfApi) -> None:
    head = api.model_info("alice/m").sha
    new = api.create_commit("alice/m", [add("a.txt", b"1")], commit_message="one", parent_commit=head).oid
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("alice/m", [add("b.txt", b"2")], commit_message="two", parent_commit=head)
    assert [c.commit_id for c in api.list_repo_commits("alice/m")][:2] == [new, head]


def test_deleting_files_and_folders(filled: FakeHub, api: HfApi) -> None:
    gone = [CommitOperationDelete("config.json"), CommitOperationDelete("sub/")]
    api.create_commit("alice/m", gone, commit_message="tidy")
    assert sorted(filled.files("alice/m")) == [".gitattributes", "w.bin"]


def test_the_tree_agrees_with_the_commit(filled: FakeHub, api: HfApi) -> None:
    tree = {item.path: item for item in api.list_repo_tree("alice/m", recursive=True)}
    assert tree["w.bin"].lfs.size == len(WEIGHTS)
    assert set(tree) == {".gitattributes", "config.json", "w.bin", "sub", "sub/deep", "sub/deep/x.txt"}
    shallow = {item.path for item in api.list_repo_tree("alice/m")}
    assert shallow == {".gitattributes", "config.json", "w.bin", "sub"}


def test_branches_and_revisions(filled: FakeHub, api: HfApi) -> None:
    first = api.model_info("alice/m").sha
    api.create_branch("alice/m", branch="dev")
    api.create_commit("alice/m", [add("a.txt", b"1")], commit_message="later", revision="dev")
    assert api.model_info("alice/m", revision="dev").sha != first
    with pytest.raises(RevisionNotFoundError):
        api.model_info("alice/m", revision="nowhere")


def test_a_pull_request_leaves_main_alone(filled: FakeHub, api: HfApi) -> None:
    head = api.model_info("alice/m").sha
    made = api.create_commit("alice/m", [add("a.txt", b"1")], commit_message="please", create_pr=True)
    assert made.pr_url == f"{filled.url}/alice/m/discussions/1"
    assert api.model_info("alice/m").sha == head
    assert "a.txt" in filled.files("alice/m", "refs/pr/1")


def test_a_range_gives_those_bytes(filled: FakeHub) -> None:
    url = huggingface_hub.hf_hub_url("alice/m", "w.bin", endpoint=filled.url)
    answer = huggingface_hub.get_session().get(url, headers={"Range": "bytes=100-199"})
    assert (answer.status_code, answer.content) == (206, WEIGHTS[100:200])
    assert answer.headers["Content-Range"] == f"bytes 100-199/{len(WEIGHTS)}"


def test_bad_yaml_is_refused_before_any_upload(filled: FakeHub, api: HfApi) -> None:
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.create_commit("alice/m", [add("README.md", b"---\na: [\n---\n")], commit_message="bad")


def test_a_passing_fault_is_retried_by_the_client(filled: FakeHub, api: HfApi) -> None:
    fault = filled.fail("POST", "/preupload/", status=503, times=2)
    api.create_commit("alice/m", [add("a.txt", b"1")], commit_message="in the end")
    assert fault.times == 0
    assert [status for _, _, status in filled.requests("POST", "/preupload/")][-3:] == [503, 503, 200]


def test_a_cut_download_is_resumed(filled: FakeHub) -> None:
    filled.fail("GET", "/resolve/.*/w.bin", cut_response=1000)
    path = huggingface_hub.hf_hub_download("alice/m", "w.bin", endpoint=filled.url)
    assert Path(path).read_bytes() == WEIGHTS


def test_a_lost_answer_leaves_the_commit(filled: FakeHub, api: HfApi) -> None:
    head = api.model_info("alice/m").sha
    filled.fail("POST", "/commit/main", lose_answer=True)
    with pytest.raises(Exception, match="disconnected"):
        api.create_commit("alice/m", [add("a.txt", b"1")], commit_message="lost", parent_commit=head)
    assert "a.txt" in filled.files("alice/m")


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
