"""The header reader: files of safetensors are read, and all others refused in one line that says
what they are."""

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import CheckpointError
from clipmerge.files.safetensors import read_header
from tests.support.raw_safetensors import entry, raw_file

TENSORS = {
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "brain": torch.arange(3, dtype=torch.bfloat16),
    "double": torch.tensor([1.0, -0.0], dtype=torch.float64),
    "whole": torch.tensor([[1, -2]], dtype=torch.int64),
    "flags": torch.tensor([True, False, True]),
}


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    entries = read_header(tmp_path / "x.safetensors")
    assert {name: each.shape for name, each in entries.items()} == {
        n: tuple(t.shape) for n, t in TENSORS.items()
    }
    checkpoint = open_checkpoint(str(tmp_path / "x.safetensors"))
    for name, tensor in TENSORS.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
        assert checkpoint.tensor(name).dtype == tensor.dtype


def test_a_header_of_any_length_is_read(tmp_path: Path) -> None:
    """Data may be unaligned after it, and its length may begin like a pickle."""
    raw = json.dumps({"a": entry()}).encode()
    for length in (*range(len(raw), len(raw) + 8), 640, 896):
        file = raw_file(
            tmp_path / "x.safetensors", raw.ljust(length), struct.pack("<2f", 1.5, -2.25)
        )
        assert open_checkpoint(str(file)).tensor("a").tolist() == [1.5, -2.25]
        assert open_checkpoint(str(file)).tensor("a", 1, 2).tolist() == [-2.25]


def refused(file: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "renamed.safetensors"])
def test_a_pickle_is_recognised_whatever_its_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    for zipped in (True, False):
        torch.save({"a": torch.zeros(2)}, file, _use_new_zipfile_serialization=zipped)
        refused(file, rf"{name}: is a pickle instead of safetensors")
        assert torch.equal(open_checkpoint(str(file)).tensor("a"), torch.zeros(2))
    for protocol in (2, 3, 4, 5):
        file.write_bytes(pickle.dumps({"a": [1.0] * 100}, protocol=protocol))
        refused(file, "is a pickle")


def test_other_files_and_truncated_ones_are_named(tmp_path: Path) -> None:
    refused(tmp_path, "cannot be read")
    file, whole = (
        tmp_path / "model.safetensors",
        save({"a": torch.arange(4.0), "b": torch.arange(3)}),
    )
    for content, message in (
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
            "is a Git-LFS pointer.*git lfs pull",
        ),
        *((whole[:size], "is not a safetensors file") for size in (0, 7, 8)),
        *(
            (whole[:size], "is truncated or damaged .*download or copy it again")
            for size in (9, 60, len(whole) - 1)
        ),
        (whole + b"\0", "is truncated or damaged"),
        (b"<!DOCTYPE html><html>", "is not a safetensors file"),
        ((100_000_001).to_bytes(8, "little") + b"{}", "is not a safetensors file"),
    ):
        file.write_bytes(content)
        refused(file, rf"model\.safetensors: {message}")


LIES = {
    "overlap": (
        {"a": entry(), "b": entry(offsets=[4, 12])},
        "is truncated or damaged .invalid offset",
    ),
    "another kind": ([1, 2], "is truncated or damaged .invalid JSON"),
    "float8": (
        {"a": entry(dtype="F8_E4M3", offsets=[0, 8], shape=[8])},
        "a has dtype F8_E4M3.*Dequantise",
    ),
    "many dimensions": ({"a": entry(shape=[1] * 64 + [2])}, "a has dtype F32 and 65 dimensions"),
    "key twice": (
        b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        "key 'a' occurs twice",
    ),
    "a long name": ({"a" * 1001: entry()}, "a tensor's name has more than 1000 characters"),
    "many values": (
        {"a": entry(shape=[1] * 2_500_000 + [2])},
        "its header cannot be read .more than 2500000 values",
    ),
    "many tensors": (
        {"a": entry(), **{f"unknown.{n}": entry(shape=[0], offsets=[8, 8]) for n in range(20_000)}},
        "holds 20001 tensors, more than 20000",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    header, message = LIES[lie]
    refused(raw_file(tmp_path / "x.safetensors", header, bytes(8)), message)
