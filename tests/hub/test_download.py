"""Reading from the Hub: every fault by the real client against the double, and no silent use of a
stale cache."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, file_download
from safetensors.torch import save

from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import CheckpointError, ClipmergeError, HubError
from clipmerge.hub import download as hub_module
from clipmerge.hub.download import (
    Snapshot,
    choose_files,
    download_model,
    remote_metadata,
    resolve,
)
from clipmerge.hub.errors import explain
from clipmerge.hub.ids import HubId, parse_hub_id
from clipmerge.report.text import text_of
from tests.support.hub_double import FakeHub, upload

MODEL = HubId("alice/clip")
TENSORS = {"a.weight": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.bfloat16)}
FILES = {
    "model.safetensors": save(TENSORS),
    "model.fp16.safetensors": b"not this one",
    "pytorch_model.bin": b"nor a pickle",
    "flax_model.msgpack": b"nor flax",
    "onnx/model.onnx": b"nor onnx",
    "onnx/config.json": b"{}",
    "config.json": b"{}",
    "vocab.json": b"{}",
    "merges.txt": b"#",
    "README.md": b"---\nlicense: mit\n---\n",
}


def fetch(hub_id: HubId) -> Snapshot:
    """Resolve a model and download what a merge needs of it."""
    snapshot = resolve(hub_id)
    download_model(snapshot)
    return snapshot


@pytest.fixture
def sha(hub: FakeHub) -> str:
    return upload(hub, MODEL.repo_id, FILES)


def test_what_can_be_a_hub_id() -> None:
    for source, expected in (
        ("org/name", HubId("org/name")),
        ("org/name@main", HubId("org/name", "main")),
        ("hf://org/na.me_2-x@refs/pr/3", HubId("org/na.me_2-x", "refs/pr/3")),
        ("org/name@feature/x", HubId("org/name", "feature/x")),
    ):
        assert parse_hub_id(source) == expected
        assert str(expected) == source.removeprefix("hf://")
    no_ids = (
        "org/name@",
        "name",
        "./org/name",
        "/org/name",
        "~/name",
        "a/b/c",
        "hf://datasets/org/name",
        "",
    )
    for source in (
        *no_ids,
        "models/clip.safetensors",
        "org/na--me",
        "org/../name",
        "org/name with space",
    ):
        assert parse_hub_id(source) is None


def test_fetch_takes_the_standard_weights_and_the_small_files(hub: FakeHub, sha: str) -> None:
    found = fetch(MODEL)
    assert (found.revision, found.note) == (sha, None)
    names = {path.name for path in found.folder.iterdir()}
    assert names == {"model.safetensors", "config.json", "vocab.json", "merges.txt"}
    assert (found.folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    before = len(hub.requests("GET", "/resolve/"))
    fetch(MODEL)
    assert len(hub.requests("GET", "/resolve/")) == before


SHARDS = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
]


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["model.safetensors", "open_clip_model.safetensors"], ["model.safetensors"]),
        (
            ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"],
            ["open_clip_model.safetensors"],
        ),
        (
            ["open_clip_pytorch_model.safetensors", "other.safetensors"],
            ["open_clip_pytorch_model.safetensors"],
        ),
        (["weights.safetensors"], ["weights.safetensors"]),
        (["pytorch_model.bin", "adapter_model.bin"], ["pytorch_model.bin"]),
        (["open_clip_pytorch_model.bin", "epoch_32.pt"], ["open_clip_pytorch_model.bin"]),
        (
            ["pytorch_model-00001-of-00001.bin"],
            ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"],
        ),
        (SHARDS, SHARDS),
    ],
)
def test_which_weights_are_chosen(names: list[str], weights: list[str]) -> None:
    index = "pytorch_model.bin.index.json"
    offered = [*names, "config.json", *([] if "epoch_32.pt" in names else [index])]
    assert choose_files(offered, MODEL) == sorted([*weights, "config.json"])


def test_the_files_beside_weights_are_those_that_are_passed_on() -> None:
    wanted = ["LICENSE", "NOTICE.md", "config.json", "model.safetensors", "vocab.json"]
    others = ["README.md", "trainer_state.json", "model.onnx", "notes.txt"]
    assert choose_files([*wanted, *others], MODEL) == sorted(wanted)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["clip.pt", "b.ckpt"],
            r"no weights under a known name, but clip.pt, b.ckpt. Download the one you",
        ),
        (["a.safetensors", "b.safetensors"], r"a.safetensors, b.safetensors. Download one"),
        (["config.json"], "alice/clip: no weights among its 1 files"),
        (
            ["model_index.json", "sd.safetensors"],
            r"its text encoder; get it with `hf download alice/clip --include",
        ),
    ],
)
def test_weights_that_cannot_be_taken(names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        choose_files(names, MODEL)


def sharded(hub: FakeHub, name: str) -> str:
    """Upload a model in two shards."""
    weight_map = dict(zip(TENSORS, SHARDS, strict=False))
    files = {file: save({key: TENSORS[key]}) for key, file in weight_map.items()}
    return upload(
        hub,
        name,
        {**files, SHARDS[2]: json.dumps({"metadata": {}, "weight_map": weight_map}).encode()},
    )


def test_remote_metadata_reads_headers_only(hub: FakeHub, sha: str) -> None:
    expected = {"a.weight": ("F32", (2, 3)), "b": ("BF16", ())}
    assert remote_metadata(MODEL.at(sha), ["model.safetensors"]) == expected
    assert {status for _, _, status in hub.requests("GET", "/resolve/")} == {206}
    assert (
        remote_metadata(HubId("alice/sharded").at(sharded(hub, "alice/sharded")), SHARDS)
        == expected
    )
    single = upload(hub, "alice/open", {"open_clip_model.safetensors": save(TENSORS)})
    assert (
        remote_metadata(HubId("alice/open").at(single), ["open_clip_model.safetensors"]) == expected
    )


@pytest.mark.parametrize("fault", [{"status": 503}, {"cut_after": 0}])
def test_a_passing_fault_is_sat_out(hub: FakeHub, sha: str, fault: dict[str, Any]) -> None:
    hub.fail("GET", "/api/models/alice/clip", times=2, **fault)
    hub.fail("GET", "/resolve/.*config", **fault)
    assert fetch(MODEL).revision == sha


def test_what_is_not_on_the_hub_or_private(
    hub: FakeHub, sha: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HubError, match="not on the Hub, or private"):
        resolve(HubId("alice/none"))
    with pytest.raises(HubError, match=r"no such revision\. Check the name after the @"):
        resolve(MODEL.at("nowhere"))
    hub.repos["model", MODEL.repo_id].private = True
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"private.*hf auth login"):
        resolve(MODEL)


def test_a_hub_that_is_down_is_not_taken_for_offline(hub: FakeHub, sha: str) -> None:
    fetch(MODEL)
    hub.stop()
    hint = (
        f"cannot be reached. Commit {sha} is cached: pass alice/clip@{sha}, or set HF_HUB_OFFLINE=1"
    )
    with pytest.raises(HubError, match=hint):
        fetch(MODEL)
    pinned = fetch(MODEL.at(sha))
    assert pinned.note is not None
    assert text_of(pinned.note).startswith("the Hub cannot be reached")
    assert (pinned.folder / "model.safetensors").is_file()


def test_a_hub_that_is_sick_or_down_does_not_give_a_stale_commit(hub: FakeHub, sha: str) -> None:
    fetch(HubId(MODEL.repo_id, "main"))
    upload(hub, MODEL.repo_id, {"config.json": b'{"new": 1}'})
    hub.fail("GET", "/api/models/alice/clip", status=500, times=9)
    with pytest.raises(HubError, match="HTTP 500"):
        fetch(MODEL)
    hub.stop()
    with pytest.raises(HubError, match=r"cannot be reached\. Check the connection"):
        fetch(HubId("alice/other"))
    with pytest.raises(HubError, match="cannot be reached"):
        remote_metadata(MODEL.at(sha), ["model.safetensors"])


def test_a_mistyped_folder_is_suggested_where_the_hub_has_no_such_model(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "zeroshot").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    told = r"The folder models on this machine holds no 'zeroshto'\. Did you mean 'models/zeroshot'"
    with pytest.raises(HubError, match=told):
        open_checkpoint("models/zeroshto")
    with pytest.raises(HubError, match=r"^(?!.*on this machine)"):
        open_checkpoint("elsewhere/zeroshto")


def test_offline_on_purpose_uses_the_cache_and_says_so(
    hub: FakeHub, sha: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(MODEL)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.log)
    found = fetch(MODEL)
    assert found.note is not None
    assert text_of(found.note) == (
        f"HF_HUB_OFFLINE is set: alice/clip is the cached commit {sha}, not checked against the Hub"
    )
    assert len(hub.log) == before
    with pytest.raises(HubError, match="not in the cache"):
        fetch(HubId("alice/other"))


def test_offline_with_half_a_copy(hub: FakeHub, sha: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(MODEL).download(["config.json"])
    sharded(hub, "alice/sharded")
    found = fetch(HubId("alice/sharded"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ClipmergeError, match=r"weights are not in the cache\. Go online"):
        fetch(MODEL)
    assert fetch(HubId("alice/sharded")).folder == found.folder
    (found.folder / SHARDS[1]).unlink()
    with pytest.raises(
        CheckpointError,
        match=r"lacks 1 of its 2 shards: model-00002-of-00002\.safetensors; download",
    ):
        open_checkpoint("alice/sharded")


@pytest.mark.parametrize("asked", ["soon", "0", "inf"])
def test_a_timeout_that_is_no_time(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMERGE_HUB_TIMEOUT", asked)
    with pytest.raises(HubError, match=f"CLIPMERGE_HUB_TIMEOUT: '{asked}'"):
        hub_module.timeout_seconds()


def test_messages_name_the_real_error_and_no_secret() -> None:
    token = "hf_" + "aB3" * 11
    error = RuntimeError(
        f"Error while uploading: Bearer {token} to https://s3/x?X-Amz-Signature=secret&y=1"
    )
    line = str(
        explain(error, doing="push", state="Nothing was published.", again="clipmerge push a b/c")
    )
    assert token not in line
    assert "secret" not in line
    assert line.endswith("Go on with `clipmerge push a b/c`.")

    outer = RuntimeError("Error while uploading")
    outer.__cause__ = ConnectionError("cas")
    assert "the Hub's storage cannot be reached" in str(explain(outer, doing="push"))


def test_a_repository_without_weights_is_no_checkpoint(hub: FakeHub) -> None:
    upload(hub, "alice/none", {"config.json": b"{}"})
    with pytest.raises(CheckpointError, match="alice/none"):
        fetch(HubId("alice/none"))


@pytest.mark.usefixtures("sha")
def test_a_cache_without_links_holds_the_files_themselves(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where a file that another thread moves away while this one copies it is
    fetched again."""
    fetch(MODEL)
    upload(hub, MODEL.repo_id, FILES | {"config.json": b'{"a": 1}'})
    moved = []

    def copyfile(source: str, target: str) -> None:
        if not moved:
            moved.append(source)
            Path(source).unlink()
        Path(target).write_bytes(Path(source).read_bytes())

    monkeypatch.setattr(file_download, "are_symlinks_supported", lambda *_: False)
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    file = fetch(MODEL).folder / "model.safetensors"
    assert moved
    assert not file.is_symlink()
    assert file.read_bytes() == FILES[file.name]


def test_every_request_has_a_timeout(
    hub: FakeHub, sha: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMERGE_HUB_TIMEOUT", "0.1")
    hub.fail("GET", "/tree/", status=0, delay=0.5, times=99)
    started = time.monotonic()
    with pytest.raises(HubError, match="no answer in time"):
        fetch(MODEL)
    assert time.monotonic() - started < 30
