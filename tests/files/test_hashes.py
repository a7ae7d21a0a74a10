"""sha256 of files, and the conditions for using a remembered one."""

import hashlib
import mmap
import os
import random
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from clipmerge.files import hashes
from clipmerge.files.hashes import SETTLED_NS, remembered_sha256, sha256_of

CONTENT = b"0123456789abcdef"
LONG_AGO = time.time_ns() - 86400 * 10**9


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clipmerge" / "hashes"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    return path


def remembered(
    path: Path, *, least: int = 1, settled_ns: int = 0, hash_file: Any = sha256_of
) -> str:
    """Hash a file; even the smallest is remembered, as soon as it is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashes, "REMEMBERED_BYTES", least)
        patch.setattr(hashes, "SETTLED_NS", settled_ns)
        patch.setattr(hashes, "sha256_of", hash_file)
        return remembered_sha256(path)


@pytest.mark.parametrize("extra", [-3 * mmap.PAGESIZE, 0, 1])
def test_a_large_file_is_hashed_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: int
) -> None:
    monkeypatch.setattr(hashes, "WINDOW", mmap.ALLOCATIONGRANULARITY)
    content = random.Random(0).randbytes(3 * mmap.PAGESIZE + extra)
    (tmp_path / "x").write_bytes(content)
    assert sha256_of(tmp_path / "x") == sha256(content)


def test_a_file_is_read_once(cache: Path, file: Path, tmp_path: Path) -> None:
    reading = Mock(side_effect=sha256_of)
    (tmp_path / "link").symlink_to(file)
    assert {remembered(each, hash_file=reading) for each in (file, file, tmp_path / "link")} == {
        sha256(CONTENT)
    }
    reading.assert_called_once_with(file)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("how", ["in place, old time set back", "another file moved there"])
def test_a_changed_file_is_read_again(cache: Path, file: Path, how: str) -> None:
    """Even if its size and its time of modification have not changed."""
    assert remembered(file) == sha256(CONTENT)
    content = CONTENT[::-1]
    time.sleep(0.02)  # file systems tick every few milliseconds
    if how == "another file moved there":
        other = file.with_name("other")
        other.write_bytes(content)
        os.utime(other, ns=(LONG_AGO, LONG_AGO))
        other.rename(file)
    else:
        with file.open("r+b") as opened:
            opened.write(content)
        os.utime(file, ns=(LONG_AGO, LONG_AGO))
    assert remembered(file) == sha256(content)
    assert list(cache.iterdir())


def test_a_file_that_is_small_just_changed_or_changes_meanwhile_is_not_remembered(
    cache: Path, file: Path
) -> None:
    """It could change again within the same tick of the file system's clock."""

    def growing(path: Path) -> str:
        digest = sha256_of(path)
        with path.open("ab") as opened:
            opened.write(b"more")
        return digest

    for options in (
        {"settled_ns": SETTLED_NS},
        {"least": len(CONTENT) + 1},
        {"hash_file": growing},
    ):
        assert remembered(file, **options) == sha256(CONTENT)
        assert not cache.exists()


@pytest.mark.parametrize("record", ["", "{}"])
def test_a_broken_record_is_made_anew(cache: Path, file: Path, record: str) -> None:
    reading = Mock(side_effect=sha256_of)
    remembered(file, hash_file=reading)
    next(cache.iterdir()).write_text(record, encoding="ascii")
    assert remembered(file, hash_file=reading) == sha256(CONTENT)
    assert remembered(file, hash_file=reading) == sha256(CONTENT)
    assert reading.call_count == 2


def test_without_a_cache_it_only_takes_longer(cache: Path, file: Path) -> None:
    cache.parent.parent.write_text("not a folder", encoding="ascii")
    assert {remembered(file) for _ in range(2)} == {sha256(CONTENT)}
