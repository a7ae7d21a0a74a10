"""Hostile or odd PyTorch files: described correctly, and read in time and memory that fit their size."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from clipmerge.checkpoint import open_checkpoint, unpickle
from clipmerge.files.safetensors import DTYPES
from clipmerge.merging.chunks import runs
from tests.checkpoint.test_state_dict import TENSORS, refuse
from tests.support.command import clipmerge, refused

CODE = r"is a pickle that holds code \(.*{}.*\), which loading would run, so clipmerge does not open it"


class Command:
    """Creates a folder when it is unpickled, by a module that torch itself blocks."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("how", ["zip", "old", "plain"])
def test_a_blocked_module_is_code_too(tmp_path: Path, how: str, protocol: int) -> None:
    file, made = tmp_path / "x.pt", tmp_path / "made"
    content = {"state_dict": {"a": torch.zeros(1)}, "args": Command(made)}
    if how == "plain":
        file.write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=how == "zip")
    refuse(file, CODE.format(r"\.mkdir"))
    assert not made.exists()


@pytest.mark.parametrize("names", [("model",), ("state_dict", "model"), ("module", "net", "weights")])
def test_a_dictionary_that_holds_itself_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    outer: dict[str, Any] = {"x": 1}
    inner = outer
    for name in names[:-1]:
        inner[name] = inner = {}
    inner[names[-1]] = outer
    torch.save(outer, tmp_path / "x.pt")
    line = refused(clipmerge("inspect", tmp_path / "x.pt"))
    assert "x.pt: holds no weights under a known name" in line


def test_the_script_keeps_a_dictionary_that_holds_itself_once() -> None:
    outer: dict[str, Any] = {"model": {"a": torch.ones(1)}, "step": 1}
    outer["model"]["trainer"] = outer["self"] = outer
    assert unpickle.weights_of(outer) == {"model": {"a": torch.ones(1)}}


@pytest.mark.parametrize("key", TENSORS)
def test_a_copy_is_let_go(tmp_path: Path, key: str) -> None:
    torch.save(TENSORS, tmp_path / "x.pt")
    checkpoint = open_checkpoint(str(tmp_path / "x.pt"))
    kept: dict[str, Any] = checkpoint._laid_out  # type: ignore[attr-defined]
    first = checkpoint.array(key, 0, 1)
    assert set(kept) == (set() if TENSORS[key].is_contiguous() else {key})
    checkpoint.array("transposed")
    checkpoint.array("a part")
    assert set(kept) == {"a part"}
    checkpoint.release("a part")
    assert not kept
    assert checkpoint.array(key, 0, 1).tolist() == first.tolist()


def test_runs_of_every_order_are_those_of_the_tensor(tmp_path: Path) -> None:
    tensors = {
        "permuted": torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        "channels last": torch.arange(48.0).reshape(2, 3, 2, 4).to(memory_format=torch.channels_last),
        "expanded": torch.arange(3.0).expand(4, 3),
        "stepped": torch.arange(12, dtype=torch.bfloat16)[::3],
    }
    torch.save(tensors, tmp_path / "x.pt")
    checkpoint = open_checkpoint(str(tmp_path / "x.pt"))
    for start, stop in runs(48, 5):
        for key, tensor in tensors.items():
            assert torch.equal(checkpoint.tensor(key, start, stop), tensor.flatten()[start:stop])
            assert checkpoint.tensor(key).dtype is getattr(torch, DTYPES[checkpoint.entries[key].dtype][0])
            checkpoint.release(key)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_disk_that_fails_while_torch_reads_is_named(
    tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    torch.save(TENSORS, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    monkeypatch.setattr(torch, "load", fail)
    refuse(tmp_path / "x.pt", r"x\.pt: cannot be read \(Input/output error\)$")


def test_a_part_is_searched_in_dictionaries_alone(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "x.pt")
    refuse(Path(f"{tmp_path / 'x.pt'}#ema"), r"holds nothing under 'ema' \(--state-key\), but a list$")
