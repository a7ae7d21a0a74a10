"""sha256 of files, and when a remembered one may stand for a file."""

from __future__ import annotations

import hashlib
import json
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
    """A user's cache, in which even the smallest files are remembered, as soon as they are written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "REMEMBERED_BYTES", 1)
    monkeypatch.setattr(hashes, "_SETTLED_NS", 0)
    return tmp_path / "cache" / "clipmerge" / "hashes"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    return path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were really read."""
    read = []

    def reading(path: Path) -> str:
        read.append(path)
        return sha256_of(path)

    monkeypatch.setattr(hashes, "sha256_of", reading)
    return read


@pytest.mark.parametrize("extra", [-3 * mmap.PAGESIZE, -1, 0, 1, mmap.PAGESIZE])
def test_a_large_file_is_hashed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: int) -> None:
    monkeypatch.setattr(hashes, "_WINDOW", mmap.ALLOCATIONGRANULARITY)
    content = random.Random(0).randbytes(3 * mmap.PAGESIZE + extra)
    (tmp_path / "x").write_bytes(content)
    assert sha256_of(tmp_path / "x") == sha256(content)


def test_a_file_is_read_once(cache: Path, file: Path, hashed: list[Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(file)
    assert {remembered_sha256(each) for each in (file, file, tmp_path / "link")} == {sha256(CONTENT)}
    assert hashed == [file]
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("how", ["in place", "in place, old time set back", "another file moved there", "longer"])
def test_a_changed_file_is_read_again(cache: Path, file: Path, how: str) -> None:
    """Even where its size and its time of modification are what they were."""
    assert remembered_sha256(file) == sha256(CONTENT)
    content = CONTENT[::-1] if how != "longer" else CONTENT * 2
    time.sleep(0.02)  # file systems tick every few milliseconds
    if how == "another file moved there":
        other = file.with_name("other")
        other.write_bytes(content)
        os.utime(other, ns=(LONG_AGO, LONG_AGO))
        other.rename(file)
    else:
        with file.open("r+b") as opened:
            opened.write(content)
    if how == "in place, old time set back":
        os.utime(file, ns=(LONG_AGO, LONG_AGO))
    assert remembered_sha256(file) == sha256(content)
    assert list(cache.iterdir())


def test_a_file_just_changed_is_not_remembered(cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could change again within the same tick of the file system's clock."""
    monkeypatch.setattr(hashes, "_SETTLED_NS", 3_000_000_000)
    assert remembered_sha256(file) == sha256(CONTENT)
    assert not cache.exists()


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def growing(path: Path) -> str:
        digest = sha256_of(path)
        with path.open("ab") as opened:
            opened.write(b"more")
        return digest

    monkeypatch.setattr(hashes, "sha256_of", growing)
    remembered_sha256(file)
    assert not cache.exists()


@pytest.mark.parametrize("record", ["", "[]", "{", '{"state": null}', '{"sha256": 3}', "digest"])
def test_a_broken_record_is_made_anew(cache: Path, file: Path, hashed: list[Path], record: str) -> None:
    remembered_sha256(file)
    place = next(cache.iterdir())
    told = json.loads(place.read_text(encoding="ascii"))
    place.write_text(json.dumps(told | {"sha256": "x" * 64}) if record == "digest" else record, encoding="ascii")
    assert remembered_sha256(file) == sha256(CONTENT)
    assert remembered_sha256(file) == sha256(CONTENT)
    assert len(hashed) == 2


def test_a_small_file_is_not_remembered(cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "REMEMBERED_BYTES", len(CONTENT) + 1)
    assert remembered_sha256(file) == sha256(CONTENT)
    assert not cache.exists()


@pytest.mark.parametrize("what", ["a file in its place", "no home"])
def test_without_a_cache_it_only_takes_longer(
    cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    if what == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        cache.parent.parent.write_text("not a folder", encoding="ascii")
    assert {remembered_sha256(file) for _ in range(2)} == {sha256(CONTENT)}
