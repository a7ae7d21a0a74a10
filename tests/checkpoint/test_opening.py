"""Opening folders, files, shards and Hub ids; each refusal is one line that names the file."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import CheckpointError, HubError
from tests.support.command import one_line
from tests.support.hub_double import FakeHub, upload
from tests.support.raw_safetensors import edit_json, shard

INDEX = "model.safetensors.index.json"
FIRST, SECOND, THIRD = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))


@pytest.fixture
def folder(copies: tuple[Path, Path]) -> Path:
    return copies[1]


@pytest.fixture
def shards(folder: Path) -> Path:
    return shard(folder)


def refused(source: Path | str, message: str) -> str:
    with one_line(CheckpointError, message) as caught:
        open_checkpoint(str(source))
    return str(caught.value)


def edit_index(folder: Path, **weight_map: Any) -> None:
    edit_json(folder / INDEX, weight_map=weight_map)


@pytest.mark.parametrize("what", ["folder", "file", "shards", "index"])
def test_every_form_gives_the_same_tensors_and_runs_of_them(folder: Path, what: str) -> None:
    expected = load_file(folder / "model.safetensors")
    if what in ("shards", "index"):
        shard(folder)
    source = {
        "folder": folder,
        "file": folder / "model.safetensors",
        "shards": folder,
        "index": folder / INDEX,
    }[what]
    checkpoint = open_checkpoint(str(source))
    assert checkpoint.entries.keys() == expected.keys()
    for key, tensor in expected.items():
        flat, size = tensor.flatten(), tensor.numel()
        assert torch.equal(checkpoint.tensor(key), tensor)
        assert torch.equal(checkpoint.tensor(key, size // 3, size), flat[size // 3 :])
        assert torch.equal(checkpoint.tensor(key, 0, size // 2), flat[: size // 2])
    assert (checkpoint.config or {})["model_type"] == "clip"
    assert checkpoint.sharded is (what in ("shards", "index"))
    assert checkpoint.hashes == {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in checkpoint.files
    }


def add_key(folder: Path, name: str, key: str) -> None:
    save_file({**load_file(folder / name), key: torch.zeros(1)}, folder / name)


def twice_in_the_index(folder: Path) -> None:
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(
        text.replace('"logit_scale":', '"logit_scale": "x", "logit_scale":')
    )


def pickled(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / "x.bin")
    edit_index(folder, logit_scale="x.bin")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing shard": (lambda f: (f / SECOND).unlink(), rf"lacks 1 of its 3 shards: {SECOND}"),
    "a key that the shard lacks": (
        lambda f: edit_index(f, ghost=FIRST),
        "1 key is not in the shards as it",
    ),
    "a key that the index lacks": (
        lambda f: add_key(f, FIRST, "extra.weight"),
        r"as it says: extra\.weight",
    ),
    "a key twice in the index": (twice_in_the_index, "'logit_scale' occurs twice"),
    "a truncated shard": (
        lambda f: os.truncate(f / THIRD, (f / THIRD).stat().st_size - 1),
        rf"{THIRD}: is truncated",
    ),
    "a pickled shard": (pickled, "x.bin: is a pickle"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_shards_are_named(shards: Path, what: str) -> None:
    spoil, message = BROKEN[what]
    spoil(shards)
    refused(shards, message)


def test_an_index_that_points_outside_or_is_none_is_refused(shards: Path) -> None:
    for target in ("../model.safetensors", "", "a\\b", 3):
        edit_index(shards, logit_scale=target)
        refused(shards, "'logit_scale' points outside its folder")
    for text in ('{"weight_map": [1]}', "[]", "{"):
        (shards / INDEX).write_text(text, encoding="latin-1")
        refused(shards, f"{INDEX}: (has no weight_map|cannot be read as JSON)")


def test_other_folders_say_what_they_are(tmp_path: Path) -> None:
    refused(
        tmp_path,
        r"no model\.safetensors in this folder; is it the folder that save_pretrained wrote\?",
    )
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.JPG").touch()
    refused(tmp_path, "in this folder; it holds images, which are given as `data`")
    for name in ("config.json", "model.onnx"):
        (tmp_path / name).write_text("{}")
        refused(
            tmp_path / name, rf"is no file of weights that is read; give its folder, {tmp_path}"
        )
    for inside, meant in (
        ("snapshots/1a/model.safetensors", "snapshots/1a"),
        ("checkpoints/epoch_3.pt", r"epoch_3\.pt"),
        ("checkpoint-5/model.safetensors", "checkpoint-5"),
    ):
        (tmp_path / inside).parent.mkdir(parents=True)
        (tmp_path / inside).write_bytes(b"")
        refused(tmp_path, rf"in this folder; give the one that you mean: \S+{meant}$")
        shutil.rmtree((tmp_path / inside).parent)
    save_file({"a": torch.zeros(1)}, tmp_path / "ema.safetensors")
    refused(tmp_path, r"has no model\.safetensors but ema\.safetensors; give the file you mean")
    (tmp_path / "ema.safetensors").rename(tmp_path / "training_args.bin")
    refused(tmp_path, r"has no model\.safetensors but training_args\.bin; give the file you mean")
    save_file({}, tmp_path / "model.safetensors")
    refused(tmp_path, "holds no tensors")
    (tmp_path / INDEX).write_text('{"weight_map": {}}')
    refused(
        tmp_path, f"holds both model.safetensors and {INDEX}, and only one of them can be meant"
    )


def test_what_is_not_there_is_not_looked_for_on_the_hub_nor_suggested_itself(
    tmp_path: Path,
) -> None:
    for source in ("./nothing", "~nosuchuser/x", "a/b.safetensors"):
        refused(source, "no such folder or file, and not a Hub id; give a folder")
    refused("https://huggingface.co/org/name/tree/main", r"Did you mean 'org/name'\?")
    (tmp_path / "zeroshot").symlink_to("moved")
    refused(tmp_path / "zeroshot", r"is a link to nothing.* org/name or org/name@revision$")


def test_an_empty_name_is_not_the_current_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for source in ("", "  "):
        refused(source, "the name of the checkpoint is empty")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_hub_id_is_read_at_its_commit(
    hub: FakeHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    expected = load_file(folder / "model.safetensors")
    if sharded:
        shard(folder)
    sha = upload(hub, "alice/clip", folder)
    for source in ("alice/clip", f"alice/clip@{sha}", "hf://alice/clip@main"):
        checkpoint = open_checkpoint(source)
        assert (checkpoint.source, checkpoint.revision) == (source, sha)
        assert all(torch.equal(checkpoint.tensor(key), tensor) for key, tensor in expected.items())
        assert checkpoint.config is not None
    with pytest.raises(HubError, match="alice/nothing"):
        open_checkpoint("alice/nothing")
    shutil.copytree(folder, tmp_path / "alice" / "clip")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("alice/clip").revision is None  # a folder on disk wins over a Hub id
