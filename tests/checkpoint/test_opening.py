"""Opening folders, files, shards and Hub ids; each refusal is one line that names the file."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipmerge.checkpoint import open_checkpoint
from clipmerge.checkpoint import source as source_module
from clipmerge.errors import CheckpointError, HubError
from clipmerge.hub import download as hub_module
from tests.support.command import clipmerge
from tests.support.command import refused as complaint
from tests.support.hub_double import FakeHub, serving, upload
from tests.support.raw_safetensors import shard

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pair[1], tmp_path / "clip"))


@pytest.fixture
def shards(folder: Path) -> Path:
    return shard(folder)


def refused(source: Path | str, message: str) -> str:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(str(source))
    text = str(caught.value)
    assert "\n" not in text
    return text


def edit_index(folder: Path, **weight_map: Any) -> Path:
    index = folder / INDEX
    data = json.loads(index.read_text())
    data["weight_map"].update(weight_map)
    index.write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("what", ["folder", "file", "shards", "index"])
def test_every_form_gives_the_same_tensors(folder: Path, what: str) -> None:
    expected = load_file(folder / "model.safetensors")
    if what in ("shards", "index"):
        shard(folder)
    source = {"folder": folder, "file": folder / "model.safetensors", "shards": folder, "index": folder / INDEX}[what]
    checkpoint = open_checkpoint(str(source))
    assert checkpoint.entries.keys() == expected.keys()
    assert all(torch.equal(checkpoint.tensor(key), tensor) for key, tensor in expected.items())
    assert checkpoint.config is not None
    assert checkpoint.config["model_type"] == "clip"
    assert checkpoint.sharded is (what in ("shards", "index"))
    assert checkpoint.hashes == {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in checkpoint.files}


def test_checkpoints_are_hashed_side_by_side(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing takes most of a merge's time: checkpoints do not wait for each other and are not hashed twice."""
    both = threading.Barrier(2, timeout=30)
    hashed = []

    def wait_for_the_other(path: Path) -> str:
        both.wait()
        hashed.append(path)
        return str(path)

    monkeypatch.setattr(source_module, "remembered_sha256", wait_for_the_other)
    shutil.copytree(folder, tmp_path / "other")
    checkpoints = [open_checkpoint(str(each)) for each in (folder, tmp_path / "other")]
    with ThreadPoolExecutor(2) as pool:
        found = [future.result() for future in [pool.submit(getattr, each, "hashes") for each in checkpoints]]
    assert [each.hashes for each in checkpoints] == found
    assert len(hashed) == 2


def test_a_run_of_elements_is_that_run(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    for key, tensor in load_file(folder / "model.safetensors").items():
        flat, size = tensor.flatten(), tensor.numel()
        assert torch.equal(checkpoint.tensor(key, size // 3, size), flat[size // 3 :])
        assert torch.equal(checkpoint.tensor(key, 0, size // 2), flat[: size // 2])


def test_a_bare_file_has_no_config(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    bare = shutil.copy(folder / "model.safetensors", tmp_path / "bare" / "clip.safetensors")
    assert open_checkpoint(str(bare)).config is None


def test_links_like_those_of_the_hub_cache_are_followed(shards: Path, tmp_path: Path) -> None:
    linked = tmp_path / "models--acme--clip" / "snapshots" / "abc"
    linked.mkdir(parents=True)
    (linked.parents[1] / "blobs").mkdir()
    for number, file in enumerate(sorted(shards.iterdir())):
        blob = linked.parents[1] / "blobs" / str(number)
        file.rename(blob)
        (linked / file.name).symlink_to(blob)
    assert len(open_checkpoint(str(linked)).files) == 3


@pytest.mark.parametrize("target", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "a\\b"])
def test_an_index_that_points_outside_is_refused(shards: Path, target: str) -> None:
    edit_index(shards, logit_scale=target)
    refused(shards, "'logit_scale' points outside its folder")


@pytest.mark.parametrize("target", [3, None, ["x"]])
def test_an_index_of_other_types_is_refused(shards: Path, target: Any) -> None:
    edit_index(shards, logit_scale=target)
    refused(shards, "'logit_scale' points outside its folder")


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": [1]}', "[]", "{", "[" * 100_000, "\xff"])
def test_an_index_that_is_none_is_refused(shards: Path, text: str) -> None:
    (shards / INDEX).write_text(text, encoding="latin-1")
    refused(shards, f"{INDEX}: (has no weight_map|is not a JSON object|cannot be read as JSON)")


def test_missing_shards_are_counted_and_named(shards: Path) -> None:
    (shards / "model-00002-of-00003.safetensors").unlink()
    refused(shards, r"1 of 3 shards are missing: model-00002-of-00003\.safetensors")


def test_a_key_the_shard_lacks_is_named(shards: Path) -> None:
    edit_index(shards, ghost="model-00001-of-00003.safetensors")
    refused(shards, "1 keys are not in the shard it names: ghost")


def test_a_key_in_another_shard_than_the_index_says_is_named(shards: Path) -> None:
    key = "logit_scale"
    here = json.loads((shards / INDEX).read_text())["weight_map"][key]
    edit_index(shards, logit_scale=next(f.name for f in sorted(shards.glob("*.safetensors")) if f.name != here))
    refused(shards, f"1 keys are not in the shard it names: {key}")


def test_a_key_the_index_lacks_is_named(shards: Path) -> None:
    first = shards / "model-00001-of-00003.safetensors"
    save_file({**load_file(first), "extra.weight": torch.zeros(1)}, first)
    refused(shards, r"1 keys of the shards are not in the index: extra\.weight")


def test_a_key_in_two_shards_is_named(shards: Path) -> None:
    first, second = (shards / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    stolen = next(iter(load_file(first)))
    save_file({**load_file(second), stolen: torch.zeros(1)}, second)
    refused(shards, f"key '{stolen}' is in two shards")


def test_a_key_twice_in_the_index_is_named(shards: Path) -> None:
    text = (shards / INDEX).read_text()
    (shards / INDEX).write_text(text.replace('"logit_scale":', '"logit_scale": "x", "logit_scale":'))
    refused(shards, "'logit_scale' occurs twice")


def test_a_truncated_shard_is_named(shards: Path) -> None:
    last = shards / "model-00003-of-00003.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    refused(shards, r"model-00003-of-00003\.safetensors: is truncated")


def test_a_pickled_shard_is_refused(shards: Path) -> None:
    torch.save({"a": torch.zeros(1)}, shards / "x.bin")
    edit_index(shards, logit_scale="x.bin")
    refused(shards, "x.bin: is a pickle")


def test_one_file_and_an_index_contradict(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": {}}')
    refused(folder, "holds both model.safetensors and model.safetensors.index.json, and only one of them can be meant")


def test_other_folders_say_what_they_are(tmp_path: Path) -> None:
    refused(tmp_path, r"no model\.safetensors in this folder; is it the folder that save_pretrained wrote\?")
    save_file({"a": torch.zeros(1)}, tmp_path / "ema.safetensors")
    refused(tmp_path, r"has no model\.safetensors but ema\.safetensors; give the file you mean")
    (tmp_path / "ema.safetensors").rename(tmp_path / "training_args.bin")
    refused(tmp_path, r"has no model\.safetensors but training_args\.bin; give the file you mean")


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    refused(tmp_path, "holds no tensors")


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff\xfe"])
def test_a_broken_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    refused(folder, r"config\.json: (cannot be read as JSON|is not a JSON object)")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "open_clip_model.safetensors", "adapter_model.safetensors", "pytorch_model.bin"]
)
def test_a_link_whose_file_is_gone_is_no_folder_of_other_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "blobs" / "4d7a")
    dead = "is a link to a file that is gone; download it again"
    assert refused(tmp_path, dead) == f"{tmp_path}: {name} {dead}"
    assert refused(tmp_path / name, dead) == f"{tmp_path / name} {dead}"


def test_a_dead_link_is_not_passed_over_for_another_librarys_weights(folder: Path) -> None:
    save_file({"visual.conv1.weight": torch.zeros(1)}, folder / "open_clip_model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "gone")
    refused(folder, r"model\.safetensors is a link to a file that is gone")


def test_dead_links_beside_the_weights_do_not_matter_unless_they_describe_them(folder: Path) -> None:
    for name in ("pytorch_model.bin", INDEX, "open_clip_model.safetensors"):
        (folder / name).symlink_to(folder / "gone")
    assert open_checkpoint(str(folder)).files == (folder / "model.safetensors",)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder / "gone")
    refused(folder, r"config\.json is a link to a file that is gone; download it again")


@pytest.mark.parametrize("command", ["inspect", "merge", "plan", "convert"])
def test_the_home_of_nobody_is_one_line(pair: tuple[Path, Path], tmp_path: Path, command: str) -> None:
    there = "~nosuchuser/x"
    arguments: dict[str, tuple[object, ...]] = {
        "inspect": (there,),
        "merge": (pair[0], there, "--recipe", "wise-ft", "--output", tmp_path / "out"),
        "plan": (there, pair[1], "--recipe", "wise-ft", "--output", tmp_path / "plan.json"),
        "convert": (there, tmp_path / "out", "--to", "open-clip"),
    }
    line = complaint(clipmerge(command, *arguments[command]))
    assert line.startswith(f"error: {there}: no such folder or file, and not a Hub id; give a folder")


@pytest.mark.parametrize("source", ["./nothing", "/no/such/folder", "~/no-such", "x.safetensors", "a/b.safetensors"])
def test_what_is_not_there_is_not_looked_for_on_the_hub(source: str) -> None:
    refused(source, "no such folder or file, and not a Hub id; give a folder")


@pytest.mark.parametrize("source", ["", "  "])
def test_an_empty_name_is_not_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(folder)
    refused(source, "the name of the checkpoint is empty")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(tmp_path, monkeypatch) as server:
        monkeypatch.setattr(hub_module, "fetch", partial(hub_module.fetch, endpoint=server.url))
        yield server


@pytest.mark.parametrize("sharded", [False, True])
def test_a_hub_id_is_read_at_its_commit(hub: FakeHub, folder: Path, sharded: bool) -> None:
    expected = load_file(folder / "model.safetensors")
    if sharded:
        shard(folder)
    sha = upload(hub, "alice/clip", {file.name: file.read_bytes() for file in folder.iterdir()})
    for source in ("alice/clip", f"alice/clip@{sha}", "hf://alice/clip@main"):
        checkpoint = open_checkpoint(source)
        assert (checkpoint.source, checkpoint.revision) == (source, sha)
        assert all(torch.equal(checkpoint.tensor(key), tensor) for key, tensor in expected.items())
        assert checkpoint.config is not None


def test_a_hub_id_that_is_not_there_is_a_hub_error(hub: FakeHub) -> None:
    with pytest.raises(HubError, match="alice/nothing"):
        open_checkpoint("alice/nothing")


def test_a_folder_on_disk_wins_over_a_hub_id(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / "alice" / "clip")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("alice/clip").revision is None
