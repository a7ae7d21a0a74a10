"""Reads from the Hub use one commit and no stale cache, and every fault is an error of one line."""

import re
from pathlib import Path

import pytest
from huggingface_hub import constants

from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import CheckpointError, HubError
from clipmerge.hub import dataset_repo, find_snapshot
from tests.support.command import one_line
from tests.support.hub_double import FakeHub, upload
from tests.support.tiny_clip import Folders

MODEL = "alice/clip"


@pytest.fixture
def sha(hub: FakeHub, pair: Folders) -> str:
    others = {"flax_model.msgpack": b"", "onnx/model.onnx": b"", "model.fp16.safetensors": b""}
    upload(hub, MODEL, pair[0])
    return upload(hub, MODEL, others)


@pytest.mark.parametrize(
    "source", ["org/name", "hf://org/na.me_2-x@refs/pr/3", "org/name@feature/x"]
)
def test_hub_ids_are_recognised(hub: FakeHub, source: str) -> None:
    with one_line(HubError, f"reading {source}: "):
        find_snapshot(source)


def test_other_texts_are_no_hub_ids() -> None:
    for source in (
        "org/name@",
        "name",
        "./org/name",
        "a/b/c",
        "~/name",
        "org/na--me",
        "a/b.safetensors",
    ):
        assert find_snapshot(source) is None
    assert find_snapshot("hf://datasets/a/b") is None
    assert dataset_repo("hf://datasets/a/b") == "a/b"
    assert dataset_repo("org/name") is None


def test_one_commit_is_downloaded_without_files_that_a_merge_does_not_need(
    hub: FakeHub, sha: str, pair: Folders
) -> None:
    snapshot = find_snapshot(MODEL)
    assert snapshot is not None
    upload(hub, MODEL, pair[1])  # the branch moves on
    assert snapshot.download(["config.json"]).name == sha
    checkpoint = open_checkpoint(f"alice/clip@{sha}")
    assert checkpoint.revision == sha
    here = {file.name: file.read_bytes() for file in checkpoint.folder.iterdir()}
    assert here == {file.name: file.read_bytes() for file in pair[0].iterdir()}


def test_offline_the_cache_is_used_and_a_note_says_so(
    hub: FakeHub, sha: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = open_checkpoint("alice/clip")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source in ("alice/clip", f"alice/clip@{sha}"):
        offline = open_checkpoint(source)
        assert (offline.revision, offline.entries) == (sha, online.entries)
        assert any("HF_HUB_OFFLINE is set" in note for note in offline.notes)
    with one_line(HubError, "reading bob/clip: .* It is not in the cache: go online and run again"):
        find_snapshot("bob/clip")


FAULTS = {
    "gated": ((403, "GatedRepo"), "Accept its conditions"),
    "absent": ((404, "RepoNotFound"), "Check the name; if"),
    "revision": ((404, "RevisionNotFound"), "after the @"),
    "no token": ((401, ""), "hf auth login"),
    "down": ((500, ""), "Try again later; HF_HUB_OFFLINE=1 reads from the cache"),
    "away": ((0, ""), "Check the connection and HF_ENDPOINT"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_and_no_stale_copy(hub: FakeHub, sha: str, fault: str) -> None:
    open_checkpoint("alice/clip")  # so that a copy is in the cache
    hub.fault, remedy = FAULTS[fault]
    with one_line(HubError, rf"reading alice/clip: .*{re.escape(remedy)}"):
        open_checkpoint("alice/clip")


def test_a_model_without_weights_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    upload(hub, "alice/empty", {"config.json": b"{}"})
    with one_line(CheckpointError, "alice/empty@.*: no weights in this folder"):
        open_checkpoint("alice/empty")
