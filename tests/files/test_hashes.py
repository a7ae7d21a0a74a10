"""sha256 of files, and when a cached one is used."""

import hashlib
import mmap
import os
import random
import time
from pathlib import Path

import pytest

from clipmerge.files import hashes
from clipmerge.files.hashes import remembered_sha256, sha256_of

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
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose hash is cached although it is new."""
    monkeypatch.setattr(hashes, "SETTLED_NS", 0)
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    return path


@pytest.mark.parametrize("size", [0, 3 * mmap.PAGESIZE, 3 * mmap.PAGESIZE + 1])
def test_a_large_file_is_hashed_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(hashes, "WINDOW", mmap.ALLOCATIONGRANULARITY)
    content = random.Random(0).randbytes(size)
    (tmp_path / "x").write_bytes(content)
    assert sha256_of(tmp_path / "x") == sha256(content)


def test_an_unchanged_file_is_read_once(
    cache: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(file)
    assert remembered_sha256(file) == sha256(CONTENT)
    monkeypatch.delattr(hashes, "sha256_of")
    assert remembered_sha256(file) == remembered_sha256(tmp_path / "link") == sha256(CONTENT)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("how", ["in place, old time set back", "another file moved there"])
def test_a_changed_file_is_read_again(cache: Path, file: Path, how: str) -> None:
    """Even if its size and its time of modification have not changed."""
    assert remembered_sha256(file) == sha256(CONTENT)
    time.sleep(0.02)  # file systems tick every few milliseconds
    changed = file.with_name("other") if how == "another file moved there" else file
    changed.write_bytes(CONTENT[::-1])
    os.utime(changed, ns=(LONG_AGO, LONG_AGO))
    changed.rename(file)
    assert remembered_sha256(file) == sha256(CONTENT[::-1])


def test_the_hash_of_a_new_file_is_not_cached(cache: Path, tmp_path: Path) -> None:
    """It could change again within the same tick of the file system's clock."""
    (tmp_path / "new").write_bytes(CONTENT)
    assert remembered_sha256(tmp_path / "new") == sha256(CONTENT)
    assert not cache.exists()


def test_without_a_cache_it_only_takes_longer(cache: Path, file: Path) -> None:
    cache.parent.parent.write_text("not a folder", encoding="ascii")
    assert {remembered_sha256(file) for _ in range(2)} == {sha256(CONTENT)}
