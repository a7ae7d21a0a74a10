"""The header reader: it accepts the same files as safetensors, and reports all others in one clear line."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_bytes
from safetensors.torch import save, save_file

from clipmerge.checkpoint import open_checkpoint, read_header
from clipmerge.errors import CheckpointError
from clipmerge.files import safetensors
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
SMALL = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    entries, metadata = read_header(tmp_path / "x.safetensors")
    assert metadata == {"format": "pt"}
    assert {name: each.shape for name, each in entries.items()} == {n: tuple(t.shape) for n, t in TENSORS.items()}
    checkpoint = open_checkpoint(str(tmp_path / "x.safetensors"))
    for name, tensor in TENSORS.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
        assert checkpoint.tensor(name).dtype == tensor.dtype


@pytest.mark.parametrize("padding", range(8))
def test_unaligned_data_is_read_right(tmp_path: Path, padding: int) -> None:
    values = [1.5, -2.25, 3.0]
    header = json.dumps({"a": entry(shape=[3], offsets=[0, 12])}).encode() + b" " * padding
    checkpoint = open_checkpoint(str(raw_file(tmp_path / "x.safetensors", header, struct.pack("<3f", *values))))
    assert checkpoint.tensor("a").tolist() == values
    assert checkpoint.tensor("a", 1, 3).tolist() == values[1:]


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_header_whose_length_starts_like_a_pickle_is_none(tmp_path: Path, length: int) -> None:
    raw = json.dumps({"a": entry()}).encode()
    file = raw_file(tmp_path / "x.safetensors", raw.ljust(length), struct.pack("<2f", 1, 2))
    assert file.read_bytes()[0] == 0x80
    assert list(read_header(file)[0]) == ["a"]


def refused(file: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "renamed.safetensors"])
def test_a_pickle_is_told_apart_whatever_its_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    for zipped in (True, False):
        torch.save({"a": torch.zeros(2)}, file, _use_new_zipfile_serialization=zipped)
        refused(file, rf"{name}: is a pickle instead of safetensors")
        assert torch.equal(open_checkpoint(str(file)).tensor("a"), torch.zeros(2))
    for protocol in (2, 3, 4, 5):
        file.write_bytes(pickle.dumps({"a": [1.0] * 100}, protocol=protocol))
        refused(file, "is a pickle")


def test_a_git_lfs_pointer_is_told_apart(tmp_path: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1710671599\n"
    (tmp_path / "model.safetensors").write_text(text)
    refused(tmp_path / "model.safetensors", r"model\.safetensors: is a Git-LFS pointer.*git lfs pull")


def test_every_truncation_is_refused_and_a_byte_too_many(tmp_path: Path) -> None:
    whole = save({"a": torch.arange(4.0), "b": torch.arange(3)})
    file = tmp_path / "x.safetensors"
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        refused(file, "is not a safetensors file" if size < 8 else r"is truncated: .*download or copy it again")
    file.write_bytes(whole + b"\0")
    refused(file, "the header is wrong: its tensors end at byte")
    for content in (b"<!DOCTYPE html><html>", b"\xff" * 64, b"{}" * 40):
        file.write_bytes(content)
        refused(file, "is not a safetensors file")


MALFORMED = "entry for 'a' is malformed"
LIES = {
    "offsets too short": ({"a": entry(offsets=[0, 4])}, "header is wrong about 'a'"),
    "offsets too long": ({"a": entry(offsets=[0, 12])}, "header is wrong about 'a'"),
    "offsets swapped": ({"a": entry(offsets=[8, 0])}, "header is wrong about 'a'"),
    "hole at the start": ({"a": entry(offsets=[4, 12])}, "starts at data byte 4"),
    "hole between": ({"a": entry(), "b": entry(offsets=[12, 20])}, "'b' starts at data byte 12.*ends at 8"),
    "overlap": ({"a": entry(), "b": entry(offsets=[4, 12])}, "'b' starts at data byte 4.*ends at 8"),
    "same place": ({"a": entry(), "b": entry()}, "header is wrong"),
    "negative offset": ({"a": entry(offsets=[-8, 0])}, MALFORMED),
    "bool offset": ({"a": entry(shape=[0], offsets=[False, False])}, MALFORMED),
    "float offset": ({"a": entry(offsets=[0, 8.0])}, MALFORMED),
    "three offsets": ({"a": entry(offsets=[0, 4, 8])}, MALFORMED),
    "negative shape": ({"a": entry(shape=[-1, -2])}, MALFORMED),
    "bool shape": ({"a": entry(shape=[2, True])}, MALFORMED),
    "float shape": ({"a": entry(shape=[2.0])}, MALFORMED),
    "text shape": ({"a": entry(shape="2")}, MALFORMED),
    "huge shape": ({"a": entry(shape=[2**62, 2**62])}, "header is wrong about 'a'"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, "has dtype ;|malformed"),
    "dtype of another type": ({"a": entry(dtype=["F32"])}, MALFORMED),  # type: ignore[arg-type]
    "entry of another type": ({"a": 3}, MALFORMED),
    "metadata with numbers": ({"__metadata__": {"epoch": 3}, "a": entry()}, "__metadata__ is not a map of strings"),
    "metadata a list": ({"__metadata__": ["x"], "a": entry()}, "__metadata__ is not a map of strings"),
    "float8": ({"a": entry(dtype="F8_E4M3", offsets=[0, 2])}, "a has dtype F8_E4M3.*Dequantise"),
    "complex": ({"a": entry(dtype="C64", offsets=[0, 16])}, "a has dtype C64"),
    "a list": ([1, 2], "header is not a JSON object"),
    "not JSON": (b"{'a': 1}", "header is not JSON"),
    "not UTF-8": (b'{"\xff\xfe": 1}', "header is not JSON"),
    "deep": (b"[" * 100_000, "header is not JSON"),
    "key twice": (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":3}', "key 'a' occurs twice"),
    "many dimensions": ({"a": entry(shape=[1] * 65)}, MALFORMED),
    "long numbers": ({"a": entry(shape=[int("9" * 90)] * 3)}, MALFORMED),
    "endless numbers": ({"a": entry(shape=[int("9" * 4200)])}, "header is not JSON .a number of 4200 digits"),
    "a long name": ({"a" * 1001: entry()}, "a tensor's name has more than 1000 characters"),
    "many values": ({"a": [[]] * 3_000_000}, "more than 2500000 values"),
    "many tensors": (
        {f"unknown.{number}": entry(shape=[0], offsets=[0, 0]) for number in range(20_001)},
        "holds 20001 tensors, more than 20000",
    ),
    "field twice": (b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}', "'dtype' occurs twice"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    header, message = LIES[lie]
    refused(raw_file(tmp_path / "x.safetensors", header, bytes(8)), message)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001])
def test_a_huge_header_length_allocates_nothing(tmp_path: Path, length: int) -> None:
    refused(raw_file(tmp_path / "x.safetensors", {"a": entry()}, bytes(8), length=length), "is not a safetensors file")


def test_a_file_that_cannot_be_read_is_a_checkpoint_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path, "cannot be read")
    save_file(TENSORS, tmp_path / "x.safetensors")
    monkeypatch.setattr(safetensors, "is_pickle", lambda path: bool(path.unlink()))  # between two looks at it
    refused(tmp_path / "x.safetensors", r"x\.safetensors: cannot be read \(No such file or directory\)$")


def accepted_by_safetensors(data: bytes) -> bool:
    try:
        load_bytes(data)
    except Exception:
        return False
    return True


def read_or_refuse(tmp_path: Path, data: bytes) -> bool:
    """Whether our reader takes the bytes; anything but a CheckpointError escapes and fails the test."""
    file = tmp_path / "fuzz.safetensors"
    file.write_bytes(data)
    try:
        entries, _ = read_header(file)
    except CheckpointError:
        return False
    for each in entries.values():
        assert 8 <= each.begin <= each.end <= len(data)
    return True


WHOLE = save({"a": torch.arange(4.0), "b": torch.arange(2), "c": torch.tensor(1.0, dtype=torch.float16)})


@SMALL
@given(place=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255), also=st.integers(0, len(WHOLE) - 1))
def test_mutated_files_never_crash_and_are_never_taken_when_safetensors_refuses(
    tmp_path: Path, place: int, value: int, also: int
) -> None:
    mutated = bytearray(WHOLE)
    mutated[place] = value
    mutated[also] ^= 1
    if read_or_refuse(tmp_path, bytes(mutated)):
        assert accepted_by_safetensors(bytes(mutated))


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_entries = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "F16", "I64", "F8_E5M2", "x"]) | _json},
    optional={"shape": st.lists(st.integers(-1, 4), max_size=3) | _json,
              "data_offsets": st.lists(st.integers(-1, 40), min_size=1, max_size=3) | _json},
)  # fmt: skip


@pytest.mark.uncounted
@settings(SMALL, max_examples=60)
@given(header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), _entries | _json, max_size=3))
def test_any_json_header_never_crashes(tmp_path: Path, header: dict[str, Any]) -> None:
    raw = json.dumps(header).encode()
    data = len(raw).to_bytes(8, "little") + raw + bytes(16)
    read_or_refuse(tmp_path, data)
