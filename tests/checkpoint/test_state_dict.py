"""PyTorch files: their tensors are read in any wrapping, and their code is never run."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel

from clipmerge.checkpoint import open_checkpoint, unpickle
from clipmerge.errors import CheckpointError
from clipmerge.hub import download as hub_module
from tests.support.command import clipmerge, refused
from tests.support.hub_double import serving, upload
from tests.support.raw_safetensors import shard

Folders = tuple[Path, Path]
TENSORS = {
    "scalar": torch.tensor(2.5),
    "matrix": torch.arange(12.0).reshape(3, 4),
    "transposed": torch.arange(12.0).reshape(3, 4).T,
    "a part": torch.arange(12.0).reshape(3, 4)[1:, ::2],
    "half": torch.arange(6, dtype=torch.float16),
    "brain": torch.arange(6, dtype=torch.bfloat16) / 3,
    "double": torch.tensor([1.0, -0.0], dtype=torch.float64),
    "whole": torch.tensor([[1, -2]]),
    "empty": torch.empty(0, 3),
}


def refuse(file: Path, message: str) -> str:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(str(file))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same_tensors(source: Path, expected: dict[str, Tensor]) -> bool:
    checkpoint = open_checkpoint(str(source))
    assert checkpoint.entries.keys() == expected.keys()
    return all(torch.equal(checkpoint.tensor(key), tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.pth", "x.ckpt", "renamed.safetensors", "no-suffix"])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_tensor_is_read(tmp_path: Path, name: str, zipped: bool) -> None:
    torch.save(TENSORS, tmp_path / name, _use_new_zipfile_serialization=zipped)
    checkpoint = open_checkpoint(str(tmp_path / name))
    for key, tensor in TENSORS.items():
        found = checkpoint.tensor(key)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor), key
        assert torch.equal(checkpoint.tensor(key, 1, 3), tensor.flatten()[1:3])
        assert checkpoint.entries[key].shape == tuple(tensor.shape)
    assert checkpoint.bytes == sum(tensor.numel() * tensor.element_size() for tensor in TENSORS.values())
    assert ("read into memory" in str(checkpoint.note)) is (not zipped or name == "renamed.safetensors")


def test_a_mapped_file_is_not_read_until_asked(tmp_path: Path) -> None:
    """Half of the file is overwritten after it was opened, and the change is seen."""
    torch.save({"a": torch.zeros(1 << 16)}, tmp_path / "x.pt")
    checkpoint = open_checkpoint(str(tmp_path / "x.pt"))
    content = bytearray((tmp_path / "x.pt").read_bytes())
    with (tmp_path / "x.pt").open("r+b") as file:
        file.seek(len(content) // 2)
        file.write(b"\x01" * 4096)
    assert bool(checkpoint.tensor("a").any())


WEIGHTS = {"visual.w": torch.ones(2), "logit_scale": torch.tensor(1.0)}
WRAPPED: dict[str, tuple[Any, str | None]] = {
    "a state dict": (OrderedDict(WEIGHTS), None),
    "OpenCLIP's training": (
        {"epoch": 3, "name": "run", "state_dict": WEIGHTS, "optimizer": {"state": {}}},
        "state_dict",
    ),
    "a model": ({"model": WEIGHTS, "optimizer": {"w": torch.zeros(2)}, "args": None}, "model"),
    "twice": ({"state_dict": {"model": WEIGHTS}}, "state_dict.model"),
    "data parallel": ({f"module.{key}": value for key, value in WEIGHTS.items()}, None),
    "compiled, then parallel": ({f"module._orig_mod.{key}": value for key, value in WEIGHTS.items()}, None),
    "parallel, then compiled": ({f"_orig_mod.module.{key}": value for key, value in WEIGHTS.items()}, None),
    "beside other things": ({**WEIGHTS, "_metadata": {"version": 1}, "step": 3}, None),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_the_weights_are_found(tmp_path: Path, how: str) -> None:
    content, inside = WRAPPED[how]
    torch.save(content, tmp_path / "x.pt")
    assert same_tensors(tmp_path / "x.pt", WEIGHTS)
    note = open_checkpoint(str(tmp_path / "x.pt")).note
    assert note is None if inside is None else str(note).endswith(f"are those under {inside}")


ENCODER = {"visual.proj": torch.ones(2), "positional_embedding": torch.ones(3), "logit_scale": torch.tensor(1.0)}
HEAD = {"classification_head.weight": torch.ones(2, 2), "classification_head.bias": torch.ones(2)}


@pytest.mark.parametrize("prefix", ["image_encoder.model.", "model.", "module.image_encoder.model."])
def test_a_classifier_is_its_image_encoder_and_head(tmp_path: Path, prefix: str) -> None:
    outer = "module." if prefix.startswith("module.") else ""
    head = {f"{outer}{key}": value for key, value in HEAD.items()}
    torch.save({**{f"{prefix}{key}": value for key, value in ENCODER.items()}, **head}, tmp_path / "x.pt")
    assert same_tensors(tmp_path / "x.pt", {"visual.proj": ENCODER["visual.proj"], **HEAD})
    whole = {**ENCODER, "transformer.resblocks.0.ln_1.weight": torch.ones(2)}
    torch.save({**{f"{prefix}{key}": value for key, value in whole.items()}, **head}, tmp_path / "x.pt")
    assert same_tensors(tmp_path / "x.pt", {**whole, **HEAD})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"holds no weights under a known name \(state_dict, .*\), but nothing; save the state_dict alone"),
        ({"epoch": 3, "weights_of_mine": {"a": torch.zeros(1)}}, "but epoch, weights_of_mine;"),
        ([torch.zeros(1)], "holds a list, not a state_dict"),
        (torch.zeros(1), "holds a Tensor, not a state_dict"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "a is strided of torch.complex64; .*Dequantise"),
        ({"a": torch.zeros(2).to(torch.float8_e4m3fn)}, "a is strided of torch.float8_e4m3fn"),
        ({"a": torch.eye(2).to_sparse()}, "a is sparse_coo of torch.float32"),
        ({"a": torch.zeros(2, device="meta")}, "a is without content"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", message)


@pytest.mark.parametrize("zipped", [True, False])
def test_damage_is_told_apart_from_code(tmp_path: Path, zipped: bool) -> None:
    torch.save(TENSORS, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "x.pt").read_bytes()
    for size in (0, 1, 5, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "x.pt").write_bytes(whole[:size])
        refuse(tmp_path / "x.pt", "is damaged or not a PyTorch file; download or copy it again")
    for text in (b"hello world", b"<!DOCTYPE html>"):
        (tmp_path / "x.pt").write_bytes(text)
        refuse(tmp_path / "x.pt", "is damaged or not a PyTorch file")
    (tmp_path / "x.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1710671599\n")
    refuse(tmp_path / "x.pt", "is a Git-LFS pointer")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "boom"))


@pytest.mark.parametrize("how", ["zip", "old", "plain", "in a shard", "in an adapter"])
def test_code_is_never_run(tmp_path: Path, pair: Folders, how: str) -> None:
    content = {"a": torch.zeros(1), "b": Bomb(tmp_path / "boom")}
    file = tmp_path / ("adapter_model.bin" if how == "in an adapter" else "pytorch_model.bin")
    if how == "plain":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how != "old")
    if how == "in a shard":
        index = {"weight_map": {"a": file.name}}
        file = tmp_path / "pytorch_model.bin.index.json"
        file.write_text(json.dumps(index))
    refuse(file, r"is a pickle that holds code \(.*\), which loading would run, so clipmerge does not open it")
    assert not (tmp_path / "boom").exists()


def test_a_torchscript_archive_is_a_program(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DeprecationWarning or, from torch 2.15 on, FutureWarning
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "x.pt"))
    refuse(
        tmp_path / "x.pt", "is a TorchScript archive, which is a program, so clipmerge does not open it.*unpickle.py"
    )


MODELING = """
import torch

class ImageEncoder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.train_preprocess, self.val_preprocess = model, print, print

class ClassificationHead(torch.nn.Linear):
    def __init__(self, normalize, weights):
        super().__init__(weights.shape[1], weights.shape[0])
        self.normalize = normalize
        self.weight = torch.nn.Parameter(weights)

class ImageClassifier(torch.nn.Module):
    def __init__(self, image_encoder, classification_head):
        super().__init__()
        self.image_encoder, self.classification_head = image_encoder, classification_head
"""
# what clip.load gives after its text transformer was deleted, in small
TRAIN = """
import pickle, torch
from src.models.modeling import *

torch.manual_seed(0)
clip = torch.nn.Module()
clip.positional_embedding = torch.nn.Parameter(torch.randn(8, 4))
clip.logit_scale = torch.nn.Parameter(torch.tensor(4.6))
clip.visual = torch.nn.Module()
clip.visual.class_embedding = torch.nn.Parameter(torch.randn(4))
clip.visual.ln_pre = torch.nn.LayerNorm(4)
model = ImageClassifier(ImageEncoder(clip), ClassificationHead(True, torch.randn(3, 4)))
with open("../pickle 1.pt", "wb") as f:
    pickle.dump(model.cpu(), f)
torch.save(model, "../zip 1.pt")
torch.save(model, "../old 1.pt", _use_new_zipfile_serialization=False)
torch.save({"epoch": 3, "model": model}, "../inside 1.pt")
torch.save(model.state_dict(), "expected.pt")
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WiSE-FT's classes in a separate checkout, and a classifier pickled there, in every way, beside it."""
    folder = tmp_path_factory.mktemp("classifiers") / "wise ft"
    (folder / "src" / "models").mkdir(parents=True)
    (folder / "src" / "models" / "modeling.py").write_text(MODELING)
    subprocess.run([sys.executable, "-c", TRAIN], cwd=folder, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("how", ["pickle", "zip", "old", "inside"])
def test_the_command_of_the_refusal_gets_the_weights_out(checkout: Path, how: str) -> None:
    file = checkout.parent / f"{how} 1.pt"
    line = refuse(file, rf"holds code \(.*src\.models\.modeling\.ImageClassifier.*and give .*{how} 1-weights\.pt")
    command = shlex.split(re.search(r"run `(.+?)`", line)[1])  # type: ignore[index]
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], cwd=checkout, check=True)
    expected = torch.load(checkout / "expected.pt", weights_only=True)  # noqa: TID251
    names = ("classification_head.", "visual.")
    renamed = {key.removeprefix("image_encoder.model."): tensor for key, tensor in expected.items()}
    kept = {key: tensor for key, tensor in renamed.items() if key.startswith(names)}
    assert len(kept) == 5
    assert same_tensors(checkout.parent / f"{how} 1-weights.pt", kept)


def unpickled(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    """Run the script in this process."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # which it sets, and the test's end takes back
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["unpickle.py", *arguments])
    monkeypatch.chdir(folder)
    runpy.run_path(str(unpickle.__file__), run_name="__main__")


def test_the_command_answers_when_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps([argparse.Namespace(a=1)]))
    for arguments, message in (([], "usage: python unpickle.py IN OUT.pt"),
                               (["x.pt", "y.pt"], "x.pt: holds no tensors")):  # fmt: skip
        with pytest.raises(SystemExit, match=message):
            unpickled(monkeypatch, tmp_path, *arguments)
    assert not (tmp_path / "y.pt").exists()


def test_the_weights_of_a_module_beside_code_get_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(3, 2)
    held = {"model": model, "args": argparse.Namespace(a=1)}
    torch.save(held, tmp_path / "torch.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(held))
    for name in ("torch.pt", "pickle.pt"):
        unpickled(monkeypatch, tmp_path, name, "out.pt")
        weights = torch.load(tmp_path / "out.pt", weights_only=True)["model"]  # noqa: TID251
        assert weights.keys() == {"weight", "bias"}
        assert all(torch.equal(weights[key], tensor) for key, tensor in model.state_dict().items())


def to_pickles(folder: Path, *, sharded: bool = False) -> Path:
    """Turn a folder's safetensors into the format used by transformers before them."""
    if sharded:
        shard(folder)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        index["weight_map"] = {k: f"pytorch_{Path(v).stem}.bin" for k, v in index["weight_map"].items()}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        (folder / "model.safetensors.index.json").unlink()
    for file in folder.glob("*.safetensors"):
        torch.save(load_file(file), folder / f"pytorch_{file.stem}.bin")
        file.unlink()
    return folder


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("sharded", [False, True])
def test_the_merge_is_the_same_bytes(pair: Folders, tmp_path: Path, which: tuple[int, ...], sharded: bool) -> None:
    folders = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in pair]
    if sharded:
        shard(folders[1])
    outputs = []
    for name in ("plain", "pickled"):
        flags = ("--recipe", "wise-ft", "--output", tmp_path / name, "--format", "quiet")
        outcome = clipmerge("merge", *folders, *flags)
        assert outcome.code == 0, outcome.err
        outputs.append({f.name: f.read_bytes() for f in (tmp_path / name).glob("model*")})
        if name == "plain":
            shutil.rmtree(folders[1])
            shutil.copytree(pair[1], folders[1])
            for index in which:
                to_pickles(folders[index], sharded=sharded and index == 1)
            if sharded and 1 not in which:
                shard(folders[1])
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == (4 if sharded else 1)
    CLIPModel.from_pretrained(tmp_path / "pickled")


def test_both_one_file_and_shards_contradict(pair: Folders, tmp_path: Path) -> None:
    folder = to_pickles(Path(shutil.copytree(pair[0], tmp_path / "clip")))
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    refuse(folder, "holds both pytorch_model.bin and pytorch_model.bin.index.json, and only one")


def test_measures_and_plans_read_them(pair: Folders, images: Path, tmp_path: Path) -> None:
    folders = [to_pickles(Path(shutil.copytree(folder, tmp_path / folder.name))) for folder in pair]
    flags = ("--recipe", "straggler-outlier", "--data", images, "--images", 12, "--format", "json", "--dry-run")
    found, expected = (clipmerge("merge", *sources, *flags) for sources in (folders, pair))
    assert found.code == 0, found.err
    assert found.json["measurements"] == expected.json["measurements"]
    clipmerge("plan", *folders, "--recipe", "wise-ft", "--output", tmp_path / "plan.json")
    torch.save({}, folders[1] / "pytorch_model.bin")
    line = refused(clipmerge("apply", tmp_path / "plan.json", "--output", tmp_path / "out"))
    assert "holds no weights" in line


def test_nan_is_found(pair: Folders, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pair[1], tmp_path / "clip"))
    tensors = load_file(folder / "model.safetensors")
    tensors["logit_scale"] = torch.tensor(float("nan"))
    torch.save(tensors, tmp_path / "x.pt")
    line = refused(clipmerge("merge", pair[0], tmp_path / "x.pt", "--recipe", "wise-ft", "--output", tmp_path / "out"))
    assert f"{tmp_path / 'x.pt'}: tensor logit_scale holds NaN" in line


def test_from_the_hub(pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = to_pickles(Path(shutil.copytree(pair[1], tmp_path / "clip")), sharded=True)
    (folder / "training_args.bin").write_bytes(pickle.dumps(argparse.Namespace()))
    download = hub_module.fetch
    with serving(tmp_path, monkeypatch) as hub:
        monkeypatch.setattr(hub_module, "fetch", lambda hub_id: download(hub_id, endpoint=hub.url))
        upload(hub, "alice/old", {file.name: file.read_bytes() for file in folder.iterdir()})
        checkpoint = open_checkpoint("alice/old")
    assert all(torch.equal(checkpoint.tensor(k), v) for k, v in load_file(pair[1] / "model.safetensors").items())
    assert not (checkpoint.folder / "training_args.bin").exists()
