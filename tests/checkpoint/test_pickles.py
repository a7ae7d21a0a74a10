"""What is checked in a PyTorch file is what torch reads, and what a few bytes of it would become."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import CheckpointError

MAKES_A_BYTEARRAY = b"\x80\x02}X\x01\x00\x00\x00ac__builtin__\nbytearray\nK\x04\x85Rs."
COMPLEX = b"\x80\x02}c__builtin__\ncomplex\nK\x01K\x02\x86RNs."
# Keys whose hashes are equal: multiples of Python's modulus.
LARGE = b"\x80\x02}(" + b"".join(b"\x8a\x0c" + (k * (2**61 - 1)).to_bytes(12, "little") + b"N" for k in range(1, 6000))


def text(content: str) -> bytes:
    return b"X" + struct.pack("<I", len(content)) + content.encode()


def encoded(codec: str) -> bytes:
    """A text that is encoded twice, the second time by a codec that makes it larger."""
    once = b"c_codecs\nencode\n" + text("abc") + text("latin1") + b"\x86R"
    return b"\x80\x02}" + text("a") + b"c_codecs\nencode\n" + once + text(codec) + b"\x86Rs."


def archive(pickle: bytes, name: str = "data.pkl") -> bytes:
    """A file of torch.save with another pickle in it."""
    buffer, changed = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(changed, "w") as target:
        for member in source.infolist():
            is_pickle = member.filename.endswith("data.pkl")
            place = member.filename.replace("data.pkl", name)
            target.writestr(place, pickle if is_pickle else source.read(member))
    return changed.getvalue()


def refuse(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(str(tmp_path / "x.pt"))


def test_a_pickle_that_python_refuses_to_read_is_not_left_to_torch(tmp_path: Path) -> None:
    """torch checks neither the checksum nor the name in front of a member."""
    whole, checksum = archive(MAKES_A_BYTEARRAY), struct.pack("<I", zlib.crc32(MAKES_A_BYTEARRAY))
    assert whole.count(checksum) == 2
    refuse(tmp_path, whole, "makes a bytearray")
    refuse(tmp_path, whole.replace(checksum, b"1234"), r"is damaged or not a PyTorch file; .*\(Bad CRC-32")
    refuse(tmp_path, whole.replace(b"/data.pkl", b"/dada.pkl", 1), r"is damaged or not a PyTorch file; .*\(File name")


def test_a_pickle_in_capitals_is_one_too(tmp_path: Path) -> None:
    refuse(tmp_path, archive(MAKES_A_BYTEARRAY, "DATA.PKL"), "makes a bytearray")


def test_a_second_list_of_members_is_not_left_to_torch(tmp_path: Path) -> None:
    """Python takes the list right before the end, and torch the one that the end points to."""
    hidden, shown = archive(MAKES_A_BYTEARRAY), archive(b"\x80\x02}.")
    end = len(shown) - 22
    (start,) = struct.unpack_from("<L", hidden, len(hidden) - 6)
    refuse(tmp_path, hidden[:-22] + shown[:end] + shown[end:-6] + struct.pack("<LH", start, 0), "no list of members")
    refuse(tmp_path, archive(b"\x80\x02}.") + b"PK", "no list of members at its end")


@pytest.mark.parametrize("codec", ["hex", "HEX-codec", "base64", "bz2", "unicode_escape", "punycode"])
def test_codecs_that_make_texts_larger_are_refused(tmp_path: Path, codec: str) -> None:
    refuse(tmp_path, archive(encoded(codec)), f"calls the codec {codec}, which weights do not need")


@pytest.mark.parametrize(
    ("pickle", "told"),
    [
        (COMPLEX, "makes complex numbers, which weights do not need"),
        (LARGE + b"u.", "holds more than 5000 numbers of more than 32 bits"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_keys_of_equal_hashes_are_refused(tmp_path: Path, pickle: bytes, told: str, old: bool) -> None:
    refuse(tmp_path, pickle if old else archive(pickle), told)


def test_bytes_of_older_pickles_are_read(tmp_path: Path) -> None:
    held = {"state_dict": {"visual.proj": torch.zeros(2)}, "comment": b"\xffhex", "seed": 2**63}
    torch.save(held, tmp_path / "x.pt")
    assert list(open_checkpoint(str(tmp_path / "x.pt")).entries) == ["visual.proj"]
