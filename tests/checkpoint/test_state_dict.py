"""PyTorch files: their tensors are read in any order and wrapping, and their code is never run."""

import argparse
import ast
import json
import os
import pickle
import re
import runpy
import shlex
import shutil
import sys
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel

from clipmerge.checkpoint import open_checkpoint, state_dict, unpickle
from clipmerge.errors import CheckpointError
from tests.support.command import clipmerge, done, one_line, refused
from tests.support.hub_double import FakeHub, upload
from tests.support.raw_safetensors import shard
from tests.support.tiny_clip import Folders

TENSORS = {
    "scalar": torch.tensor(2.5),
    "matrix": torch.arange(12.0).reshape(3, 4),
    "transposed": torch.arange(12.0).reshape(3, 4).T,
    "permuted": torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
    "channels last": torch.arange(48.0).reshape(2, 3, 2, 4).to(memory_format=torch.channels_last),
    "expanded": torch.arange(3.0).expand(4, 3),
    "a part": torch.arange(12.0).reshape(3, 4)[1:, ::2],
    "half": torch.arange(6, dtype=torch.float16),
    "brain": torch.arange(12, dtype=torch.bfloat16)[::3] / 3,
    "double": torch.tensor([1.0, -0.0], dtype=torch.float64),
    "whole": torch.tensor([[1, -2]]),
    "empty": torch.empty(0, 3),
}


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def refuse(file: Path, message: str) -> str:
    with one_line(CheckpointError, message) as caught:
        open_checkpoint(str(file))
    return str(caught.value)


def same_tensors(source: Path, expected: dict[str, Tensor]) -> bool:
    checkpoint = open_checkpoint(str(source))
    assert checkpoint.entries.keys() == expected.keys()
    return all(torch.equal(checkpoint.tensor(key), tensor) for key, tensor in expected.items())


@pytest.mark.parametrize(
    ("name", "zipped"), [("x.pt", True), ("renamed.safetensors", True), ("no-suffix", False)]
)
def test_every_tensor_is_read_whole_and_in_runs(tmp_path: Path, name: str, zipped: bool) -> None:
    checkpoint = open_checkpoint(
        str(saved(tmp_path / name, TENSORS, _use_new_zipfile_serialization=zipped))
    )
    for key, tensor in TENSORS.items():
        found = checkpoint.tensor(key)
        assert found.dtype == tensor.dtype
        assert checkpoint.entries[key].shape == tuple(tensor.shape) == tuple(found.shape)
        assert torch.equal(found, tensor), key
        for start, stop in ((start, min(start + 5, 48)) for start in range(0, 48, 5)):
            assert torch.equal(checkpoint.tensor(key, start, stop), tensor.flatten()[start:stop])
    assert checkpoint.bytes == sum(
        tensor.numel() * tensor.element_size() for tensor in TENSORS.values()
    )
    assert ("read-into-memory" in [note.kind for note in checkpoint.notes]) is (
        not zipped or name == "renamed.safetensors"
    )


def test_a_mapped_file_is_not_read_until_asked(tmp_path: Path) -> None:
    """Half of the file is overwritten after it was opened, and the change is seen."""
    file = saved(tmp_path / "x.pt", {"a": torch.zeros(1 << 16)})
    checkpoint = open_checkpoint(str(file))
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(b"\x01" * 4096)
    assert bool(checkpoint.tensor("a").any())


ENCODER = {
    "visual.proj": torch.ones(2),
    "positional_embedding": torch.ones(3),
    "logit_scale": torch.tensor(1.0),
}
HEAD = {"classification_head.weight": torch.ones(2, 2), "classification_head.bias": torch.ones(2)}


@pytest.mark.parametrize("prefix", ["model.", "module.image_encoder.model."])
def test_a_classifier_is_its_image_encoder_and_head(tmp_path: Path, prefix: str) -> None:
    outer = "module." if prefix.startswith("module.") else ""
    head = {f"{outer}{key}": value for key, value in HEAD.items()}
    whole = {**ENCODER, "transformer.resblocks.0.ln_1.weight": torch.ones(2)}
    for held, left in ((ENCODER, {"visual.proj": ENCODER["visual.proj"]}), (whole, whole)):
        file = saved(
            tmp_path / "x.pt", {**{f"{prefix}{key}": value for key, value in held.items()}, **head}
        )
        assert same_tensors(file, {**left, **HEAD})


def test_tied_weights_are_read(tmp_path: Path) -> None:
    weight = torch.zeros(4, 4)
    assert same_tensors(
        saved(tmp_path / "x.pt", {"a.w": weight, "b.w": weight.T}), {"a.w": weight, "b.w": weight.T}
    )


inside_itself: dict[str, Any] = {"x": 1, "net": {}}
inside_itself["net"]["model"] = inside_itself

NONE = r"holds no weights under a known name \(state_dict, .*\), but"
NO_WEIGHTS: list[tuple[Any, str]] = [
    ({}, f"{NONE} nothing; save the state_dict alone"),
    ({"epoch": 3, "weights_of_mine": {"a": torch.zeros(1)}}, f"{NONE} epoch, weights_of_mine;"),
    (
        {"shadow_params": [torch.zeros(1)]},
        rf"{NONE} .* ema\.copy_to\(model\.parameters\(\)\), then",
    ),
    (inside_itself, NONE),
    ([torch.zeros(1)], "holds a list, not a state_dict"),
    ({"a": torch.zeros(2, dtype=torch.complex64)}, "a is strided of torch.complex64; .*Dequantise"),
    ({"a": torch.eye(2).to_sparse()}, "a is sparse_coo of torch.float32"),
    ({"a": torch.zeros(2, device="meta")}, "a is without content"),
    (
        {"a": torch.zeros(1).expand(1 << 28)},
        r"x.pt: its tensors span 1024 MiB, but it holds only 0 KiB",
    ),
]


@pytest.mark.parametrize(("content", "message"), NO_WEIGHTS)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    refuse(saved(tmp_path / "x.pt", content), message)


@pytest.mark.parametrize("zipped", [True, False])
def test_damage_is_distinguished_from_code(tmp_path: Path, zipped: bool) -> None:
    file = saved(tmp_path / "x.pt", TENSORS, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    for size in (0, 1, 5, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        refuse(file, "is damaged or not a PyTorch file; download or copy it again")
    file.write_bytes(b"<!DOCTYPE html>")
    refuse(file, "is damaged or not a PyTorch file")
    file.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1710671599\n"
    )
    refuse(file, "is a Git-LFS pointer")


def test_an_archive_that_is_larger_than_its_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch would make room for all that the list of its members states."""
    plain = saved(tmp_path / "plain.pt", {"visual.proj": torch.ones(2, 2)})
    archive = zipfile.ZipFile(plain)
    with zipfile.ZipFile(tmp_path / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as deflated:
        for name in archive.namelist():
            deflated.writestr(name, archive.read(name) + b"." * (1 << 20))
    refuse(
        tmp_path / "deflated.pt", r"deflated.pt: is compressed inside, which torch.save does not do"
    )
    content = plain.read_bytes()
    at = content.rfind(b"PK\x01\x02", 0, content.rfind(b"/version"))
    (tmp_path / "x.pt").write_bytes(content[: at + 24] + b"\xff\xff\xff\xfe" + content[at + 28 :])
    refuse(tmp_path / "x.pt", r"is compressed inside")
    monkeypatch.setattr(state_dict, "MAX_PICKLE_BYTES", 100)
    refuse(plain, r"plain\.pt: its pickle is larger than")


def test_a_pipe_by_the_name_of_weights_keeps_nobody_waiting(tmp_path: Path) -> None:
    for name in ("x.pt", "x.safetensors", "model.safetensors"):
        os.mkfifo(tmp_path / name)
        refuse(tmp_path / name, "is neither a file nor a folder")
    refuse(tmp_path, r"model.safetensors: cannot be read \(not a regular file")


class Bomb:
    """Makes a folder when it is unpickled; by `os.mkdir`, which torch itself blocks."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("how", ["zip", "old", "plain", "in a shard", "in an adapter"])
def test_code_is_never_run(tmp_path: Path, how: str, protocol: int) -> None:
    content = {"state_dict": {"a": torch.zeros(1)}, "args": Bomb(tmp_path / "made")}
    file = tmp_path / ("adapter_model.bin" if how == "in an adapter" else "pytorch_model.bin")
    if how == "plain":
        file.write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        torch.save(
            content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=how != "old"
        )
    if how == "in a shard":
        (tmp_path / "pytorch_model.bin.index.json").write_text(
            json.dumps({"weight_map": {"a": file.name}})
        )
        file = tmp_path / "pytorch_model.bin.index.json"
    refuse(
        file,
        r"is a pickle that holds code \(.*\), which loading would run, so clipmerge does not"
        r" open it",
    )
    assert not (tmp_path / "made").exists()


def test_a_torchscript_archive_is_a_program(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DeprecationWarning or, from torch 2.15 on, FutureWarning
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "x.pt"))
    refuse(
        tmp_path / "x.pt",
        "is a TorchScript archive, which is a program, so .* does not open it.*unpickle.py",
    )


def unpickled(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    """Run the script in this process."""
    monkeypatch.setenv(
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1"
    )  # which it sets, and the test's end takes back
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["unpickle.py", *arguments])
    monkeypatch.chdir(folder)
    runpy.run_path(str(unpickle.__file__), run_name="__main__")


def test_the_script_extracts_weights_or_says_why_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Linear(3, 2)
    held = {"model": model, "args": argparse.Namespace(a=1)}
    torch.save(held, tmp_path / "a zip.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(held))
    for name in ("a zip", "pickle"):  # a class of the user's own is refused in the same way
        line = refuse(tmp_path / f"{name}.pt", r"holds code \(argparse\.Namespace\).*-weights\.pt$")
        _, script, *arguments = shlex.split(re.search(r"run `(.+?)`", line)[1])  # type: ignore[index]
        assert script == unpickle.__file__
        unpickled(monkeypatch, tmp_path, *arguments)
        expected = {f"model.{key}": value for key, value in model.state_dict().items()}
        found = open_checkpoint(str(tmp_path / f"{name}-weights.pt"))
        assert all(
            torch.equal(found.tensor(key.removeprefix("model.")), value)
            for key, value in expected.items()
        )
    (tmp_path / "x.pt").write_bytes(pickle.dumps([argparse.Namespace(a=1)]))
    for arguments, message in (
        ([], "usage: python unpickle.py IN OUT.pt"),
        (["x.pt", "y.pt"], "holds no tensors"),
    ):
        with pytest.raises(SystemExit, match=message):
            unpickled(monkeypatch, tmp_path, *arguments)
    assert not (tmp_path / "y.pt").exists()
    outer: dict[str, Any] = {"model": {"a": torch.ones(1)}, "step": 1}
    outer["model"]["trainer"] = outer["self"] = outer  # a dictionary that holds itself
    assert unpickle.weights_of(outer) == {"model": {"a": torch.ones(1)}}


def test_the_script_needs_only_torch_and_an_old_python() -> None:
    tree = ast.parse(Path(unpickle.__file__).read_text(), feature_version=(3, 6))
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (getattr(node, "module", None), *(alias.name for alias in node.names))
    }
    assert not {name for name in imported if str(name).startswith("clipmerge")}


def to_pickles(folder: Path, *, sharded: bool = False) -> Path:
    """Turn a folder's safetensors into the format used by transformers before them."""
    if sharded:
        shard(folder)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        index["weight_map"] = {
            k: f"pytorch_{Path(v).stem}.bin" for k, v in index["weight_map"].items()
        }
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        (folder / "model.safetensors.index.json").unlink()
    for file in folder.glob("*.safetensors"):
        torch.save(load_file(file), folder / f"pytorch_{file.stem}.bin")
        file.unlink()
    return folder


@pytest.mark.parametrize(("which", "sharded"), [((0,), False), ((0, 1), True)])
def test_the_merge_is_the_same_bytes(
    pair: Folders, copies: Folders, tmp_path: Path, which: tuple[int, ...], sharded: bool
) -> None:
    outputs = []
    for name in ("plain", "pickled"):
        shutil.rmtree(copies[1])
        shutil.copytree(pair[1], copies[1])
        if name == "pickled":
            for index in which:
                to_pickles(copies[index], sharded=sharded and index == 1)
        if sharded and (name == "plain" or 1 not in which):
            shard(copies[1])
        flags = ("--recipe", "wise-ft", "--output", tmp_path / name, "-q")
        done("merge", *copies, *flags)
        outputs.append({f.name: f.read_bytes() for f in (tmp_path / name).glob("model*")})
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == (4 if sharded else 1)
    CLIPModel.from_pretrained(tmp_path / "pickled")


def test_from_the_hub_and_beside_another_index(hub: FakeHub, copies: Folders) -> None:
    expected = load_file(copies[1] / "model.safetensors")
    folder = to_pickles(copies[1], sharded=True)
    (folder / "training_args.bin").write_bytes(pickle.dumps(argparse.Namespace()))
    upload(hub, "alice/old", folder)
    checkpoint = open_checkpoint("alice/old")
    assert all(torch.equal(checkpoint.tensor(key), tensor) for key, tensor in expected.items())
    assert not (checkpoint.folder / "training_args.bin").exists()
    torch.save({}, folder / "pytorch_model.bin")
    line = refused(clipmerge("inspect", folder))
    assert "holds both pytorch_model.bin and pytorch_model.bin.index.json, and only one" in line


def pickled(path: Path, code: bytes) -> Path:
    """An archive as torch writes it, around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", code)
        archive.writestr("x/version", "3\n")
        archive.writestr("x/byteorder", "little")
    return path


@pytest.mark.parametrize("name", ["archive.pt", "old.pt"])
def test_a_pickle_that_asks_for_much_memory_is_refused_before_it_gets_any(
    tmp_path: Path, name: str
) -> None:
    """`bytearray` is among the functions that torch lets a file of weights call."""
    code = pickle.PROTO + b"\x02cbuiltins\nbytearray\n" + b"\x8a\x05\x00\x28\x6b\xee\x00\x85R."
    file = tmp_path / name
    if name == "archive.pt":
        pickled(file, code)
    else:
        file.write_bytes(code)
    tracemalloc.start()
    refuse(file, "asks for 3814 MiB of memory, more than it holds")
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_a_small_bytearray_is_no_fault(tmp_path: Path) -> None:
    weights = {"a.weight": torch.ones(3, 3)}
    file = saved(tmp_path / "a.pt", {"state_dict": weights, "salt": bytearray(b"12")})
    assert same_tensors(file, weights)


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_a_pickle_that_would_run_a_command_gets_no_command_to_load_it(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(pickle.dumps({"model": _Runs()}))
    line = refuse(file, r"posix\.system is nothing that weights need, and may do harm")
    assert "unpickle.py" not in line


def test_the_script_for_trusted_pickles_takes_arrays_of_numpy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.pkl"
    array = torch.arange(6.0).reshape(2, 3)
    file.write_bytes(pickle.dumps({"a.weight": array.numpy(), "names": "x"}))
    monkeypatch.setattr(sys, "argv", ["unpickle.py", str(file), str(tmp_path / "out.pt")])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "")
    unpickle.main()
    assert same_tensors(tmp_path / "out.pt", {"a.weight": array})
