"""The header reader: files of safetensors are read, and all others refused in one line that says
what they are."""

import json
import struct
from pathlib import Path
from typing import Any

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


def header_of(header: Any) -> bytes:
    """A file with a header and eight bytes of data."""
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(8)


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(str(tmp_path / "x.safetensors"))
    for name, tensor in TENSORS.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
        assert checkpoint.tensor(name).dtype == tensor.dtype


def test_a_header_of_any_length_is_read(tmp_path: Path) -> None:
    """Data may be unaligned after it, and its length may begin like a pickle."""
    raw = json.dumps({"a": entry()}).encode()
    for length in (len(raw), len(raw) + 1, 640, 896):
        file = raw_file(
            tmp_path / "x.safetensors", raw.ljust(length), struct.pack("<2f", 1.5, -2.25)
        )
        assert open_checkpoint(str(file)).tensor("a").tolist() == [1.5, -2.25]
        assert open_checkpoint(str(file)).array("a", 1, 2).tolist() == [-2.25]


def refused(file: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_recognised_whatever_its_name(tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "weights", "renamed.safetensors"):
        for zipped in (True, False):
            file = tmp_path / name
            torch.save({"a": torch.zeros(2)}, file, _use_new_zipfile_serialization=zipped)
            refused(file, rf"{name}: is a pickle instead of safetensors; rename it to")
            if name != "renamed.safetensors":
                assert torch.equal(open_checkpoint(str(file)).tensor("a"), torch.zeros(2))


WHOLE = save({"a": torch.arange(4.0), "b": torch.arange(3)})
DAMAGED = "is truncated, damaged or not a safetensors file .*; download or copy it again"
BROKEN: dict[str, tuple[bytes, str]] = {
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
        "is a Git-LFS pointer.*git lfs pull",
    ),
    **{f"cut at {size}": (WHOLE[:size], DAMAGED) for size in (0, 9, len(WHOLE) - 1)},
    "overlap": (header_of({"a": entry(), "b": entry(offsets=[4, 12])}), DAMAGED),
    "a list": (header_of([1, 2]), DAMAGED),
    "float8": (
        header_of({"a": entry(dtype="F8_E4M3", offsets=[0, 8], shape=[8])}),
        "a has dtype F8_E4M3.*Dequantise",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named(tmp_path: Path, kind: str) -> None:
    content, message = BROKEN[kind]
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    refused(file, rf"model\.safetensors: {message}")
