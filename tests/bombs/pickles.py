"""Bombs in PyTorch's own format, one function for each, from a path to a file there."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from tests.bombs.registry import MIB, bomb


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _saved(path: Path, held: Any) -> None:
    import torch

    torch.save(held, path)


def _with_pickle(path: Path, content: bytes, *, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/version", "3\n")


@bomb("pickle", "x.pt")
def bytearray_of_6_GB(path: Path) -> None:
    import torch

    _saved(path, {"a": torch.zeros(2), "b": _Call(bytearray, 6_000_000_000)})


@bomb("pickle", "x.pt")
def tensors_of_one_number(path: Path) -> None:
    import torch

    _saved(path, {f"a{number}.weight": torch.zeros(1).expand(1 << 24) for number in range(100)})


@bomb("pickle", "x.pt")
def pickle_of_1_GB_deflated(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x/data.pkl", "w") as member:
        member.write(b"\x80\x02")
        for _ in range(1024):
            member.write(b"]" * MIB)


@bomb("pickle", "x.pt")
def pickle_of_lists(path: Path) -> None:
    _with_pickle(path, b"\x80\x02" + b"]" * (63 * MIB) + b".")


@bomb("pickle", "x.pt")
def pickle_of_lists_above_its_limit(path: Path) -> None:
    _with_pickle(path, b"\x80\x02" + b"]" * (65 * MIB) + b".")


@bomb("old_pickle", "x.pt")
def old_pickle_of_lists(path: Path) -> None:
    path.write_bytes(b"\x80\x02" + b"]" * (200 * MIB) + b".")


@bomb("pickle", "x.pt")
def pickle_of_tuples_in_tuples(path: Path) -> None:
    _with_pickle(path, b"\x80\x02)" + b"\x85" * (30 * MIB) + b".")


@bomb("pickle", "x.pt")
def pickle_of_doubling_tuples(path: Path) -> None:
    _with_pickle(path, b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 100 + b".")


@bomb("pickle", "x.pt")
def name_of_1_MB_that_a_pickle_calls(path: Path) -> None:
    _with_pickle(path, b"\x80\x02c" + b"a" * MIB + b"\nb\n.")


@bomb("pickle", "x.pt")
def number_of_a_million_digits(path: Path) -> None:
    _with_pickle(path, b"\x80\x02\x8b" + struct.pack("<i", 400_000) + b"\x7f" * 400_000 + b".")


@bomb("old_pickle", "x.pt")
def storage_of_a_terabyte(path: Path) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3, 5)}, buffer, _use_new_zipfile_serialization=False)
    path.write_bytes(buffer.getvalue().replace(b"K\x0f", b"\x8a\x06" + (1 << 38).to_bytes(6, "little")))


@bomb("pickle", "x.pt")
def list_of_a_million_members(path: Path) -> None:
    entries = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0) + b"x/%06d" % number
        for number in range(1_000_000)
    )
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(entries), 30, 0)
    path.write_bytes(b"PK\3\4" + bytes(26) + entries + end)


def _text(content: str) -> bytes:
    return b"X" + struct.pack("<I", len(content)) + content.encode()


@bomb("pickle", "x.pt")
def pickle_with_a_wrong_checksum(path: Path) -> None:
    """Python's zipfile does not read it, and torch does: a bytearray of a gigabyte."""
    pickle = b"\x80\x02}" + _text("a") + b"c__builtin__\nbytearray\nJ\0\0\0\x40\x85Rs."
    _with_pickle(path, pickle)
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", zlib.crc32(pickle)), b"1234"))


@bomb("pickle", "x.pt")
def pickle_of_codecs(path: Path) -> None:
    """A text of ten letters, doubled thirty times."""
    call = b"c_codecs\nencode\n"
    begun = call * 30 + call + _text("a" * 10) + _text("latin1") + b"\x86R"
    _with_pickle(path, b"\x80\x02}" + _text("a") + begun + (_text("hex") + b"\x86R") * 30 + b"s.")


@bomb("pickle", "x.pt")
def pickle_of_keys_of_equal_hashes(path: Path) -> None:
    keys = (b"\x8a\x0c" + (number * (2**61 - 1)).to_bytes(12, "little") + b"N" for number in range(1, 300_000))
    _with_pickle(path, b"\x80\x02}(" + b"".join(keys) + b"u.")
