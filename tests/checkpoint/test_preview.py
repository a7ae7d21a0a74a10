"""Pairs from the Hub that do not match are refused by their headers: the request log shows no
weights."""

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save
from transformers import CLIPModel

from clipmerge.checkpoint import find_source, open_checkpoint
from clipmerge.checkpoint.opening import preview_checkpoint
from clipmerge.errors import CheckpointError
from tests.support.command import clipmerge, done, refused
from tests.support.hub_double import FakeHub, upload
from tests.support.tiny_clip import Folders, tiny_config, tiny_processor


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP whose shapes differ, in shards."""
    folder = tmp_path_factory.mktemp("wide")
    CLIPModel(tiny_config(width=64)).save_pretrained(folder, max_shard_size="200KB")
    tiny_processor().save_pretrained(folder)
    return folder


def downloaded(hub: FakeHub) -> list[str]:
    """Files of weights that were requested completely."""
    whole = [
        path
        for _, path, status in hub.requests("GET", r"/resolve/.*\.safetensors$")
        if status == 200
    ]
    return [path.rpartition("/")[2] for path in whole]


@pytest.mark.parametrize(
    ("command", "local"),
    [("merge", "neither"), ("merge", "zeroshot"), ("merge", "finetuned"), ("sweep", "neither")],
)
def test_a_pair_that_does_not_fit_downloads_no_weights(
    hub: FakeHub, pair: Folders, wide: Path, images: Path, tmp_path: Path, command: str, local: str
) -> None:
    upload(hub, "acme/base", pair[0])
    upload(hub, "acme/wide", wide)
    sources = [
        str(pair[0]) if local == "zeroshot" else "acme/base",
        str(wide) if local == "finetuned" else "acme/wide",
    ]
    flags = {
        "merge": ["-r", "wise-ft", "-o", tmp_path / "out"],
        "sweep": ["--id", f"a={images}", "--ood", f"b={images}", "-o", tmp_path / "out"],
    }[command]
    line = refused(clipmerge(command, *sources, *flags))
    assert re.search(r"tensors differ in shape; first .*zeroshot \(.*\), finetuned \(", line), line
    assert downloaded(hub) == []
    assert hub.requests("GET", r"/resolve/.*\.safetensors$")
    assert not (tmp_path / "out").exists()


def test_inspect_needs_headers_alone_where_it_can(hub: FakeHub, pair: Folders, wide: Path) -> None:
    for name, folder in zip(("acme/base", "acme/tuned", "acme/wide"), (*pair, wide), strict=True):
        upload(hub, name, folder)
    here = clipmerge("inspect", pair[0], "--json").json
    there = clipmerge("inspect", "acme/base", "--json").json
    assert (there["layers"], there["total"]) == (here["layers"], here["total"])
    sharded = clipmerge("inspect", "acme/wide", "--json").json
    assert sharded["layers"] == clipmerge("inspect", wide, "--json").json["layers"]
    unfit = clipmerge("inspect", "acme/base", "acme/wide", "--json")
    assert (
        unfit.json["mismatches"] == clipmerge("inspect", pair[0], wide, "--json").json["mismatches"]
    )
    assert "no weights were downloaded" in unfit.err
    quick = clipmerge("inspect", "acme/base", "acme/tuned", "--no-weights", "--json")
    assert quick.json["mismatches"] == []
    assert "change" not in quick.json["layers"]["logit_scale"]
    assert downloaded(hub) == []
    full = clipmerge("inspect", "acme/base", "acme/tuned", "--json").json
    assert full["layers"] == clipmerge("inspect", *pair, "--json").json["layers"]
    assert downloaded(hub) == ["model.safetensors"] * 2


def test_a_preview_says_what_opening_says_or_is_not_made(
    hub: FakeHub, pair: Folders, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = upload(hub, "acme/wide", wide)
    seen = preview_checkpoint(find_source("acme/wide"))
    assert seen is not None
    opened = open_checkpoint(str(wide))
    assert (seen.revision, seen.config, seen.bytes) == (sha, opened.config, opened.bytes)
    assert sorted(f.name for f in seen.files) == sorted(f.name for f in opened.files)
    told = {key: (entry.dtype, entry.shape) for key, entry in opened.entries.items()}
    assert {key: (entry.dtype, entry.shape) for key, entry in seen.entries.items()} == told
    assert preview_checkpoint(find_source(str(pair[0]))) is None
    open_checkpoint("acme/wide")  # is in the cache from now on
    assert preview_checkpoint(find_source("acme/wide")) is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert preview_checkpoint(find_source(f"acme/wide@{sha}")) is None


def test_a_quantised_model_is_refused_before_it_is_downloaded(hub: FakeHub) -> None:
    tensors = {"logit_scale": torch.ones(2).to(torch.float8_e4m3fn)}
    upload(hub, "acme/tiny", {"model.safetensors": save(tensors), "config.json": b"{}"})
    with pytest.raises(
        CheckpointError,
        match=r"acme/tiny@.*, logit_scale: has dtype F8_E4M3; clipmerge merges BF16",
    ):
        preview_checkpoint(find_source("acme/tiny"))
    assert downloaded(hub) == []


def test_a_run_asks_for_the_commit_of_a_revision_once(
    hub: FakeHub, pair: Folders, tmp_path: Path
) -> None:
    for name, folder in zip(("acme/base", "acme/tuned"), pair, strict=True):
        upload(hub, name, folder)
    done("merge", "acme/base", "acme/tuned", "-r", "wise-ft", "-o", tmp_path / "out")
    for name in ("base", "tuned"):
        assert len(hub.requests("GET", rf"/api/models/acme/{name}(/revision/[^/]+)?$")) == 1
