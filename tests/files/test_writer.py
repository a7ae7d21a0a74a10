"""The output file: the bytes appended and their hash, on every kind of disk, or the disk's
error."""

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clipmerge.files import writer as module
from clipmerge.files.writer import OutputFile, output_file

BLOCK = 8192
SIZES = (0, 1, 4096, 3 * BLOCK, 7 * BLOCK + 1234)


def content(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def pieces(data: bytes) -> Iterator[bytes]:
    """Cut unevenly: into pieces within a block, across its end, and longer than several blocks."""
    lengths, start = (7, 4096, 100, 3 * BLOCK + 5, 1), 0
    for turn in range(len(data) + 1):
        if start >= len(data):
            return
        yield data[start : start + lengths[turn % len(lengths)]]
        start += lengths[turn % len(lengths)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks."""
    for name, value in {"BLOCK": BLOCK, "BLOCKS": 3}.items():
        monkeypatch.setattr(module, name, value)


def write(path: Path, data: bytes) -> OutputFile:
    with output_file(path, len(data)) as file:
        for piece in pieces(data):
            file.append(np.frombuffer(piece, np.uint8))
        assert file.finish() == hashlib.sha256(data).hexdigest()
    assert path.read_bytes() == data
    return file


@pytest.mark.parametrize("size", SIZES)
def test_the_file_is_what_was_appended(tmp_path: Path, size: int) -> None:
    write(tmp_path / "file", content(size))


def test_short_writes_are_taken_up_where_they_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = os.write
    monkeypatch.setattr(os, "write", lambda file, data: written(file, data[:1000]))
    write(tmp_path / "file", content(5 * BLOCK + 77))


def test_what_is_computed_in_place_is_what_is_written(tmp_path: Path) -> None:
    values = np.arange(10_000, dtype=np.float32)
    header = b"x" * 104
    with output_file(tmp_path / "file", len(header) + values.nbytes) as file:
        file.append(np.frombuffer(header, np.uint8))
        start, places = 0, set()
        while start < len(values):
            place = file.reserve(min(900, len(values) - start), "float32")
            places.add(place.__array_interface__["data"][0])
            place[:] = values[start : start + len(place)]
            file.append(place)
            start += len(place)
        digest = file.finish()
    expected = header + values.tobytes()
    assert (tmp_path / "file").read_bytes() == expected
    assert digest == hashlib.sha256(expected).hexdigest()
    assert len(places) < len(values) / 900 + 10  # memory is used again


@pytest.mark.parametrize("name", ["write", "fsync"])
def test_what_the_disk_refuses_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, name, fail)
    monkeypatch.setattr(module, "FLUSH", 1000)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write(tmp_path / "file", content(20 * BLOCK))


def test_nothing_is_written_over_or_in_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError), output_file(tmp_path / "file", 5):
        pass
    assert (tmp_path / "file").read_text() == "mine"
    for size in (5, 20 * BLOCK):
        with pytest.raises(FileNotFoundError), output_file(tmp_path / "no" / "file", size):
            pass
